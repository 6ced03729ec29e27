//! The client against a server that answers what a test wrote down. It plays its answers once and then is gone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use iceberg::spec::MAIN_BRANCH;
use serde_json::json;

use super::*;
use crate::config::Backend;
use crate::target::history::tests::table;

/// What the server does with a request.
#[derive(Debug)]
enum Play {
    Answer(String),
    /// Reads it and hangs up.
    HangUp,
}

#[derive(Debug, Clone)]
struct Received {
    /// Method and path.
    line: String,
    /// In lower case.
    headers: String,
    body: String,
}

struct Server {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Server {
    fn start(plays: Vec<Play>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = received.clone();
        thread::spawn(move || {
            let (mut listener, mut plays) = (Some(listener), plays.into_iter().peekable());
            while let Some(play) = plays.next() {
                let (stream, _) = listener.as_ref().unwrap().accept().unwrap();
                if plays.peek().is_none() {
                    // Before the last answer: who has it finds nobody any more.
                    listener = None;
                }
                let mut reader = BufReader::new(stream);
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    match line.trim_end() {
                        "" => break,
                        line => lines.push(line.to_owned()),
                    }
                }
                let line = lines.remove(0).trim_end_matches(" HTTP/1.1").to_owned();
                let headers = lines.join("\n").to_lowercase();
                let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
                reader.read_exact(&mut body).unwrap();
                log.lock().unwrap().push(Received { line, headers, body: String::from_utf8(body).unwrap() });
                if let Play::Answer(answer) = play {
                    reader.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        Self { url, received }
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.received().into_iter().map(|received| received.line).collect()
    }
}

fn answer(status: u16, headers: &str, body: &str) -> Play {
    let length = body.len();
    Play::Answer(format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"))
}

fn ok(body: &Value) -> Play {
    answer(200, "", &body.to_string())
}

fn error(status: u16, kind: &str, message: &str) -> Play {
    answer(status, "", &json!({"error": {"message": message, "type": kind, "code": status}}).to_string())
}

fn plain_config() -> Play {
    ok(&json!({"defaults": {}, "overrides": {}}))
}

/// The configuration of a catalog, with further lines in `[catalog]`.
fn config(url: &str, lines: &str) -> Config {
    let text = format!(
        "[catalog]\ntype = 'rest'\nuri = '{url}'\n{lines}\n[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n"
    );
    let environment = |name: &str| Some(format!("{}-s3cret", name.to_lowercase()));
    match crate::config::Config::parse(&text, Path::new("/"), environment).unwrap().catalog.backend {
        Backend::Rest(config) => *config,
        _ => panic!("another catalog"),
    }
}

fn is_nothing(found: Found) -> bool {
    matches!(found, Found::Nothing)
}

fn found_table(found: Found) -> Loaded {
    match found {
        Found::Table(loaded) => *loaded,
        other => panic!("{other:?}"),
    }
}

async fn connect(server: &Server, lines: &str) -> Result<Rest> {
    Rest::connect(&config(&server.url, lines), "").await
}

const TOKEN: &str = "token_env = 'TOKEN'";
const CLIENT: &str = "credential_env = 'CLIENT'";

fn name(namespace: &str) -> TableName {
    TableName { namespace: namespace.to_owned(), name: "t".to_owned() }
}

fn table_answer(metadata: &TableMetadata) -> Value {
    json!({"metadata-location": "s3://b/t/metadata/1.metadata.json", "metadata": metadata})
}

/// A table, what it is after a further commit, and the updates in between.
fn commit_of() -> (TableMetadata, TableMetadata, Vec<TableUpdate>) {
    let (base, next) = (table(&[Some(1)]), table(&[Some(1), Some(2)]));
    let snapshot = next.current_snapshot().unwrap().as_ref().clone();
    let build = base.clone().into_builder(None).set_branch_snapshot(snapshot, MAIN_BRANCH).unwrap().build().unwrap();
    (base, build.metadata, build.changes)
}

/// Nothing that a person or a log sees of an error holds a secret.
fn check_secrets(error: &Error) {
    let seen = format!("{error} {error:?} {}", error.hint_text());
    assert!(!seen.contains("s3cret"), "{seen}");
}

#[tokio::test]
async fn a_table_is_asked_for_where_the_configuration_says() {
    let served = json!({
        "defaults": {"prefix": "ours wins", "header.X-Served": "1"},
        "overrides": {"prefix": "a/b", "namespace-separator": "%2E", "warehouse": "s3://elsewhere/w"},
    });
    let server = Server::start(vec![
        ok(&served),
        error(404, "NoSuchTableException", "no"),
        error(404, "NotFoundException", "its metadata is gone"),
        answer(404, "", "<html>"),
    ]);
    let lines = "token_env = 'TOKEN'\nheader_env = { X-Key = 'HEADER' }\nproperties = { prefix = 'mine' }";
    let rest = Rest::connect(&config(&server.url, lines), "main & more").await.unwrap();
    let name = TableName { namespace: "x.y".to_owned(), name: "t +/1".to_owned() };
    assert!(is_nothing(rest.load(&name, None).await.unwrap()));
    for _ in 0..2 {
        assert_eq!(rest.load(&name, None).await.unwrap_err().kind(), Kind::Refused);
    }
    let table = "GET /api/v1/a/b/namespaces/x%2Ey/tables/t%20%2B%2F1";
    assert_eq!(server.lines(), ["GET /api/v1/config?warehouse=main%20%26%20more", table, table, table]);
    let received = server.received();
    for header in [
        "authorization: bearer token-s3cret",
        "x-key: header-s3cret",
        "x-iceberg-access-delegation: vended-credentials",
    ] {
        assert!(received.iter().all(|received| received.headers.contains(header)), "{header}: {received:?}");
    }
    assert!(received[0].headers.contains("user-agent: k2-offload/"));
    assert!(received[1].headers.contains("x-served: 1") && !received[0].headers.contains("x-served"));
}

#[tokio::test]
async fn delegation_of_access_can_be_turned_off() {
    let server = Server::start(vec![plain_config()]);
    connect(&server, "properties = { \"header.X-Iceberg-Access-Delegation\" = '' }").await.unwrap();
    assert!(!server.received()[0].headers.contains("delegation"));
}

#[tokio::test]
async fn a_loaded_table_brings_its_credentials() {
    let mut body = table_answer(&table(&[Some(1)]));
    body["config"] = json!({"s3.secret-access-key": "s3cret", "x": null});
    body["storage-credentials"] = json!([{"prefix": "s3://b", "config": {"s3.session-token": "s3cret"}}]);
    let loaded = answer(200, "etag: \"v1\"\r\n", &body.to_string());
    let server = Server::start(vec![plain_config(), loaded, answer(304, "", "")]);
    let rest = connect(&server, "").await.unwrap();
    let loaded = found_table(rest.load(&name("c"), None).await.unwrap());
    assert_eq!(loaded.metadata, table_of(&body));
    assert_eq!(loaded.metadata_location, "s3://b/t/metadata/1.metadata.json");
    let prefixes: Vec<_> = loaded.credentials.iter().map(|vended| vended.prefix.as_str()).collect();
    assert_eq!(prefixes, ["s3://b", ""]);
    assert!(loaded.credentials.iter().all(|vended| vended.properties.len() == 1));
    let seen = format!("{loaded:?}");
    assert!(seen.contains("s3.secret-access-key") && !seen.contains("s3cret"), "{seen}");
    let again = rest.load(&name("c"), loaded.etag.as_deref()).await.unwrap();
    assert!(matches!(again, Found::Same));
    assert!(server.received()[2].headers.contains("if-none-match: \"v1\""));
}

fn table_of(body: &Value) -> TableMetadata {
    serde_json::from_value(body["metadata"].clone()).unwrap()
}

#[tokio::test]
async fn a_busy_server_is_waited_for() {
    let busy = || answer(503, "retry-after: 0\r\n", "");
    let server = Server::start(vec![busy(), plain_config(), busy(), busy(), ok(&table_answer(&table(&[])))]);
    let rest = connect(&server, "").await.unwrap();
    assert!(!is_nothing(rest.load(&name("c"), None).await.unwrap()));

    let server = Server::start(vec![plain_config(), answer(429, "retry-after: 600\r\n", "")]);
    let failed = connect(&server, "").await.unwrap().load(&name("c"), None).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Unavailable);
    assert!(failed.to_string().contains("asks to wait 600 s"), "{failed}");
}

fn granted(token: &str, seconds: u32) -> Play {
    ok(&json!({"access_token": token, "token_type": "bearer", "expires_in": seconds}))
}

#[tokio::test]
async fn a_token_that_ended_or_was_refused_is_fetched_anew() {
    let missing = || error(404, "NoSuchTableException", "no");
    let server = Server::start(vec![
        granted("one", 0),
        plain_config(),
        granted("two", 3600),
        missing(),
        error(401, "NotAuthorizedException", "revoked"),
        granted("three", 3600),
        missing(),
        error(419, "AuthenticationTimeoutException", "ended"),
        granted("four", 3600),
        error(401, "NotAuthorizedException", "and again"),
    ]);
    let rest = connect(&server, CLIENT).await.unwrap();
    for _ in 0..2 {
        assert!(is_nothing(rest.load(&name("c"), None).await.unwrap()));
    }
    assert_eq!(rest.load(&name("c"), None).await.unwrap_err().kind(), Kind::Config);
    let received = server.received();
    let tokens: Vec<_> = received.iter().filter_map(|r| r.headers.split_once("authorization: bearer ")).collect();
    let tokens: Vec<_> = tokens.iter().filter_map(|(_, rest)| rest.lines().next()).collect();
    assert_eq!(tokens, ["one", "two", "two", "three", "three", "four"]);
    assert_eq!(received[0].line, "POST /api/v1/oauth/tokens");
    assert_eq!(received[0].body, "grant_type=client_credentials&client_secret=client-s3cret&scope=catalog");
}

#[tokio::test]
async fn a_change_goes_out_again_only_if_it_was_not_begun() {
    let (base, next, updates) = commit_of();
    let key = Uuid::now_v7();
    let refused = error(401, "NotAuthorizedException", "ended");
    let busy = answer(429, "retry-after: 0\r\n", "");
    let server = Server::start(vec![
        granted("one", 3600),
        ok(&json!({"defaults": {}, "overrides": {}, "idempotency-key-lifetime": "PT30M"})),
        refused,
        granted("two", 3600),
        busy,
        ok(&table_answer(&next)),
    ]);
    let rest = connect(&server, CLIENT).await.unwrap();
    let committed = rest.commit(&name("c"), &base, &updates, key).await.unwrap();
    assert!(matches!(committed, Committed::Done(loaded) if loaded.metadata == next));
    let commits: Vec<_> = server.received().into_iter().filter(|r| r.line.ends_with("/tables/t")).collect();
    assert_eq!(commits.len(), 3);
    let header = format!("idempotency-key: {key}");
    assert!(commits.iter().all(|commit| commit.headers.contains(&header) && commit.body == commits[0].body));
}

/// Whoever may commit is told of the conflict; some servers do not take a commit of nothing.
#[tokio::test]
async fn whether_commits_are_taken_is_told_by_a_vain_one() {
    for (status, is_taken) in
        [(409, true), (400, true), (422, true), (403, false), (404, false), (405, false), (503, false)]
    {
        let server = Server::start(vec![plain_config(), answer(status, "", "")]);
        let rest = connect(&server, TOKEN).await.unwrap();
        assert_eq!(rest.try_commit(&name("c")).await.is_ok(), is_taken, "{status}");
    }
}

/// What does not stage a creation does not say where it would be; what is busy may do so the next time.
#[tokio::test]
async fn a_server_may_say_where_it_would_put_a_table() {
    let (base, ..) = commit_of();
    let staged = json!({"metadata": {"location": "s3://b/t"}, "config": {"s3.region": "r"}}).to_string();
    for (play, expected) in [
        (answer(200, "", &staged), Some("s3://b/t")),
        (answer(200, "", "{}"), None),
        (error(409, "AlreadyExistsException", "no"), None),
        (answer(406, "", ""), None),
    ] {
        let server = Server::start(vec![plain_config(), play]);
        let place = connect(&server, TOKEN).await.unwrap().place(&name("c"), &base).await.unwrap();
        assert_eq!(place.as_ref().map(|(location, _)| location.as_str()), expected);
        assert_eq!(place.map(|(_, lent)| lent.len()), expected.map(|_| 1));
    }
    let server = Server::start(vec![plain_config(), answer(502, "", "")]);
    let place = connect(&server, TOKEN).await.unwrap().place(&name("c"), &base).await;
    assert!(matches!(place, Err(SwapError::Unknown(_))), "{place:?}");
}

#[tokio::test]
async fn a_commit_is_done_stale_rejected_or_unknown() {
    let (base, next, updates) = commit_of();
    let done = || table_answer(&next).to_string();
    let cut = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n{}", done().len() + 1, done());
    for (play, expected) in [
        (answer(200, "", &done()), "done"),
        (error(409, "CommitFailedException", "requirement failed"), "stale"),
        (answer(409, "", "<html>"), "stale"),
        (error(400, "BadRequestException", "no"), "not done: Refused"),
        (error(401, "NotAuthorizedException", "token-s3cret"), "not done: Config"),
        (error(403, "ForbiddenException", "not with Bearer token-s3cret"), "not done: Config"),
        (error(404, "NoSuchTableException", "no"), "not done: Refused"),
        (answer(429, "retry-after: 60\r\n", ""), "not done: Unavailable"),
        (answer(307, "location: http://127.0.0.1:1/\r\n", ""), "not done: Config"),
        (error(500, "CommitStateUnknownException", "token-s3cret"), "unknown: Unavailable"),
        (answer(502, "", "<html>"), "unknown: Unavailable"),
        (answer(503, "retry-after: 0\r\n", ""), "unknown: Unavailable"),
        (error(504, "", ""), "unknown: Unavailable"),
        (answer(200, "", "<html>"), "unknown: Unavailable"),
        (answer(204, "", ""), "unknown: Unavailable"),
        (answer(200, "", &table_answer(&base).to_string()), "unknown: Unavailable"),
        (Play::Answer(cut), "unknown: Unavailable"),
        (Play::HangUp, "unknown: Unavailable"),
    ] {
        let shown = format!("{play:?}");
        let server = Server::start(vec![plain_config(), play]);
        let rest = connect(&server, TOKEN).await.unwrap();
        let came = match rest.commit(&name("c"), &base, &updates, Uuid::now_v7()).await {
            Ok(Committed::Done(_)) => "done".to_owned(),
            Ok(Committed::Stale) => "stale".to_owned(),
            Err(SwapError::NotDone(error)) => {
                check_secrets(&error);
                format!("not done: {:?}", error.kind())
            }
            Err(SwapError::Unknown(error)) => {
                check_secrets(&error);
                format!("unknown: {:?}", error.kind())
            }
        };
        assert_eq!(came, expected, "{shown}");
        assert!(!server.received()[1].headers.contains("idempotency-key"), "was not offered");
    }
}

#[tokio::test]
async fn what_was_not_sent_is_not_done() {
    let (base, _, updates) = commit_of();
    let server = Server::start(vec![plain_config()]);
    let rest = connect(&server, "").await.unwrap();
    let failed = rest.commit(&name("c"), &base, &updates, Uuid::now_v7()).await.unwrap_err();
    assert!(matches!(failed, SwapError::NotDone(error) if error.kind() == Kind::Unavailable));
    let failed = rest.load(&name("c"), None).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_server_that_is_no_catalog_is_told_so() {
    let config = |fields: Value| {
        let mut body = json!({"defaults": {}, "overrides": {}});
        body.as_object_mut().unwrap().append(&mut fields.as_object().unwrap().clone());
        ok(&body)
    };
    let reading = json!({"endpoints": ["GET /v1/{prefix}/namespaces/{namespace}/tables/{table}"]});
    for (play, kind, text) in [
        (answer(200, "", "<html>s3cret</html>"), Kind::Config, "no Iceberg REST catalog"),
        (ok(&json!({"name": "s3cret"})), Kind::Config, "no Iceberg REST catalog"),
        (answer(404, "", "s3cret"), Kind::Config, "no Iceberg REST catalog"),
        (error(404, "NoSuchWarehouseException", "no w"), Kind::Config, "no w"),
        (error(400, "BadRequestException", "no w"), Kind::Config, "no w"),
        (error(401, "NotAuthorizedException", "token-s3cret"), Kind::Config, "401"),
        (error(403, "ForbiddenException", "header-s3cret"), Kind::Config, "403"),
        (answer(302, "location: http://127.0.0.1:1/\r\n", ""), Kind::Config, "302"),
        (error(500, "ServerError", "token-s3cret"), Kind::Unavailable, "500"),
        (Play::HangUp, Kind::Unavailable, "connect to the catalog"),
        (config(reading), Kind::Config, "does not offer `POST"),
        (config(json!({"overrides": {"warehouse": "s3://b/other"}})), Kind::Refused, "s3://b/other"),
    ] {
        let server = Server::start(vec![play]);
        let lines = format!("{TOKEN}\nheader_env = {{ X-Key = 'HEADER' }}");
        let connected = Rest::connect(&self::config(&server.url, &lines), "s3a://b/w/").await;
        let error = connected.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        check_secrets(&error);
    }
}

#[tokio::test]
async fn a_client_that_is_refused_is_told_so_without_its_secret() {
    let body = json!({"error": "invalid_client", "error_description": "not client-s3cret"}).to_string();
    for (play, kind) in [
        (answer(401, "", &body), Kind::Config),
        (answer(400, "", &body), Kind::Config),
        (answer(404, "", ""), Kind::Config),
        (answer(500, "", ""), Kind::Unavailable),
        (answer(200, "", "{\"token\": \"x-s3cret\"}"), Kind::Config),
        (answer(400, "", "{\"error\": \"temporarily_unavailable\"}"), Kind::Unavailable),
        (Play::HangUp, Kind::Unavailable),
    ] {
        let error = connect(&Server::start(vec![play]), CLIENT).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("fetch a token"), "{error}");
        check_secrets(&error);
    }
}

#[tokio::test]
async fn a_table_is_created_with_its_namespaces() {
    let no_namespace = || error(404, "NoSuchNamespaceException", "no");
    let server = Server::start(vec![
        plain_config(),
        no_namespace(),
        no_namespace(),
        error(409, "AlreadyExistsException", "is there"),
        ok(&json!({"namespace": ["a", "b"]})),
        ok(&table_answer(&table(&[]))),
        error(409, "AlreadyExistsException", "is there"),
        error(404, "NotFoundException", "no such file"),
    ]);
    let rest = connect(&server, "").await.unwrap();
    let name = name("a.b");
    assert!(rest.create(&name, &table(&[])).await.unwrap());
    assert!(!rest.create(&name, &table(&[])).await.unwrap());
    let failed = rest.register(&name, "s3://b/t/metadata/1.metadata.json").await.unwrap_err();
    assert!(matches!(failed, SwapError::NotDone(error) if error.kind() == Kind::Refused));
    let (namespaces, tables) = ("POST /api/v1/namespaces", "POST /api/v1/namespaces/a%1Fb/tables");
    let register = "POST /api/v1/namespaces/a%1Fb/register";
    assert_eq!(server.lines()[1..], [tables, namespaces, namespaces, namespaces, tables, tables, register]);
    let bodies: Vec<Value> = server.received()[1..].iter().map(|r| serde_json::from_str(&r.body).unwrap()).collect();
    let namespaces: Vec<_> = bodies[1..4].iter().map(|body| body["namespace"].clone()).collect();
    assert_eq!(namespaces, [json!(["a", "b"]), json!(["a"]), json!(["a", "b"])]);
    assert_eq!(bodies[0], bodies[4]);
    assert_eq!(bodies[0].get("location"), None, "the place is the catalog's to choose");
}

#[tokio::test]
async fn a_namespace_that_cannot_be_created_leaves_no_table() {
    let server = Server::start(vec![
        plain_config(),
        error(404, "NoSuchNamespaceException", "no"),
        error(403, "ForbiddenException", "not you"),
    ]);
    let rest = connect(&server, "").await.unwrap();
    let failed = rest.create(&name("a"), &table(&[])).await.unwrap_err();
    assert!(matches!(failed, SwapError::NotDone(error) if error.kind() == Kind::Config));
}
