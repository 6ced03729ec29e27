//! Who may not do what a pass needs, or is not who he should be, before a catalog: each bad call ends with the exit code that its cause has and a hint
//! that helps, tells no secret and leaves nothing behind; with the cause gone, the next pass brings exactly the rows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use support::faults::{ALWAYS, Fault, FaultyProxy, ONCE};
use support::lake::{ca_file, psql, variable};
use support::scene::Scene;
use support::tls::{Authority, Terminator};
use support::{Case, Place, TRADES, Target, in_parallel, wait_until};

/// What a catalog answers to requests like a pattern.
struct Answer {
    pattern: &'static str,
    fault: Fault,
    exit: i32,
    says: &'static [&'static str],
}

const fn answer(
    pattern: &'static str,
    status: u16,
    body: &'static str,
    exit: i32,
    says: &'static [&'static str],
) -> Answer {
    Answer { pattern, fault: Fault::Told(status, body), exit, says }
}

/// Of a server that does not want to be waited for.
const fn busy(pattern: &'static str, status: u16) -> Answer {
    let says = &["answers", "the next pass tries again"];
    Answer { pattern, fault: Fault::Answered(status, "Retry-After: 0\r\n"), exit: 1, says }
}

macro_rules! error {
    ($kind:literal) => {
        concat!(
            "{\"error\": {\"message\": \"in plain words\", \"type\": \"",
            $kind,
            "\", \"code\": 0, \"stack\": [\"canary\"]}}"
        )
    };
}

const CONFIG: &str = "GET /v1/config*";
const LOAD: &str = "GET */tables/trades*";
const COMMIT: &str = "POST */tables/trades";
const NEXT: &str = "the next pass tries again";
const ANSWERS: [Answer; 35] = [
    answer(
        CONFIG,
        401,
        error!("NotAuthorizedException"),
        2,
        &["401 (NotAuthorizedException): in plain words", "give catalog.token or catalog.credential"],
    ),
    answer(CONFIG, 403, error!("ForbiddenException"), 2, &["403 (ForbiddenException)", "administrator"]),
    answer(CONFIG, 404, "<html>canary</html>", 2, &["no Iceberg REST catalog", "correct catalog.uri"]),
    answer(CONFIG, 404, error!("NoSuchWarehouseException"), 2, &["catalog.warehouse"]),
    answer(CONFIG, 400, error!("BadRequestException"), 2, &["catalog.warehouse", "catalog.uri"]),
    answer(CONFIG, 200, "<html>canary</html>", 2, &["v1/config is no configuration", "correct catalog.uri"]),
    answer(CONFIG, 302, "", 2, &["302", "sends elsewhere"]),
    answer(CONFIG, 407, "", 2, &["HTTPS_PROXY"]),
    answer(CONFIG, 500, error!("InternalServerError"), 1, &["500", NEXT]),
    answer(CONFIG, 502, "<html>canary</html>", 1, &["502", NEXT]),
    answer(
        CONFIG,
        200,
        "{\"defaults\": {}, \"overrides\": {}, \"endpoints\": [\"GET /v1/{prefix}/namespaces\"]}",
        2,
        &["does not offer `GET /v1/{prefix}/namespaces/{namespace}/tables/{table}`", "administrator"],
    ),
    answer(
        CONFIG,
        200,
        "{\"defaults\": {}, \"overrides\": {}, \"endpoints\": [\"GET /v1/{prefix}/namespaces/{namespace}/tables/{table}\"]}",
        2,
        &["does not offer `POST /v1/{prefix}/namespaces/{namespace}/tables/{table}`", "reading alone is not enough"],
    ),
    busy(CONFIG, 429),
    busy(CONFIG, 503),
    answer(LOAD, 401, error!("NotAuthorizedException"), 2, &["load table metadata of `cold", "catalog.token"]),
    answer(LOAD, 403, error!("ForbiddenException"), 2, &["load table metadata of `cold", "administrator"]),
    answer(LOAD, 404, "", 3, &["load table metadata of `cold", "404"]),
    answer(LOAD, 404, error!("NoSuchTableException"), 3, &["does not exist", "init-tables"]),
    answer(LOAD, 404, error!("NotFoundException"), 3, &["404 (NotFoundException)"]),
    answer(LOAD, 500, error!("InternalServerError"), 1, &[NEXT]),
    answer(LOAD, 504, "<html>canary</html>", 1, &["504", NEXT]),
    answer(LOAD, 200, "<html>canary</html>", 1, &["no JSON", NEXT]),
    answer(LOAD, 200, "{}", 3, &["does not say where the table's metadata is"]),
    busy(LOAD, 429),
    busy(LOAD, 503),
    answer(COMMIT, 400, error!("BadRequestException"), 3, &["commit to `cold", "400 (BadRequestException)", "log"]),
    answer(COMMIT, 401, error!("NotAuthorizedException"), 2, &["commit to `cold", "catalog.token"]),
    answer(COMMIT, 403, error!("ForbiddenException"), 2, &["commit to `cold", "administrator"]),
    answer(COMMIT, 404, error!("NoSuchTableException"), 3, &["commit to `cold", "NoSuchTableException"]),
    answer(COMMIT, 405, "", 3, &["commit to `cold", "405"]),
    answer(COMMIT, 413, "<html>canary</html>", 3, &["commit to `cold", "413"]),
    answer(COMMIT, 419, error!("AuthenticationTimeoutException"), 2, &["commit to `cold"]),
    answer(COMMIT, 422, error!("UnprocessableEntityException"), 3, &["commit to `cold", "422"]),
    answer(COMMIT, 501, error!("UnsupportedOperationException"), 3, &["commit to `cold", "501"]),
    busy(COMMIT, 429),
];

/// A scene whose catalog is behind a proxy.
fn behind_proxy(place: Place, name: &str) -> (Scene, FaultyProxy) {
    let mut proxy = None;
    let scene = Scene::with(place, name, |lake| {
        let faulty = FaultyProxy::http(&lake.catalog_url);
        lake.catalog_url.clone_from(&faulty.url);
        proxy = Some(faulty);
    });
    (scene, proxy.unwrap())
}

#[test]
fn what_a_catalog_answers_is_told_with_what_to_do() {
    let (scene, proxy) = behind_proxy(Place::Rest, "answers");
    for Answer { pattern, fault, exit, says } in ANSWERS {
        proxy.inject(pattern, ALWAYS, fault);
        scene.fails(&format!("{pattern} {fault:?}"), &[], exit, says);
        proxy.calm();
    }
    scene.recovers();
}

/// What a proxy or a lock of the server refuses, while the table is what the commit was built on, may be the second of two: the first may still land.
#[test]
fn p14_a_commit_that_is_refused_over_a_table_that_is_as_it_was_keeps_its_files() {
    // With and without keys that tell repetitions apart.
    in_parallel(2, vec![Place::Rest, Place::Guarded], |place| {
        let (scene, proxy) = behind_proxy(place, "refused");
        let conflict = error!("CommitFailedException");
        let before = scene.case.target("trades").metadata_file();
        proxy.inject(COMMIT, ALWAYS, Fault::Told(409, conflict));
        let told = ["the catalog refuses it as stale, and the table is as it was", "kept", "\nhint: "];
        scene.run(&["run"], &[]).expect(1).says(&told);
        assert_eq!(scene.case.target("trades").metadata_file(), before);
        proxy.calm();
        proxy.inject(COMMIT, ONCE, Fault::Told(409, conflict));
        scene.run(&["run"], &[]).expect(0);
        scene.case.target("trades").holds_all("trades");
        // The one that was refused lands just before the next one.
        scene.case.trades("trades", "2024-03-11 23:59:00", 100);
        proxy.calm();
        proxy.inject(COMMIT, ONCE, Fault::Overtaken(409, conflict));
        scene.run(&["run"], &[]).expect(0);
        scene.case.target("trades").holds_all("trades");
        scene.run(&["audit", "--checksum"], &[]).expect(0);
        assert_eq!(scene.case.pass_one()["status"], "nothing");
    });
}

/// A catalog that lost the table, or is not the one that was meant, gives a new one the same place.
#[test]
fn no_table_is_made_where_one_lies_that_the_catalog_does_not_know() {
    let scene = Scene::new(Place::Rest, "lost");
    let target = scene.case.target("trades");
    let folder = scene.case.location(&target.folder());
    target.ask("drop", json!({}));
    let told = ["a table lies at", &folder, "--register"];
    scene.run(&["init-tables"], &[]).expect(3).says(&told);
    scene.run(&["run"], &[]).expect(3).says(&["does not exist"]);
    scene.run(&["init-tables", "--register", &folder, "--table", "trades"], &[]).expect(0);
    scene.recovers();
}

/// A catalog that repeats what it was sent.
#[test]
fn secrets_in_an_answer_do_not_show() {
    let (scene, proxy) = behind_proxy(Place::Guarded, "repeats");
    let told = "{\"error\": {\"message\": \"no: client-secret\", \"type\": \"ForbiddenException\", \"code\": 403}}";
    for pattern in [CONFIG, LOAD, COMMIT] {
        proxy.inject(pattern, ALWAYS, Fault::Told(403, told));
        scene.fails(pattern, &[], 2, &["no: <secret>"]);
        proxy.calm();
    }
    let told = "{\"error\": \"invalid_client\", \"error_description\": \"unknown: client-secret\"}";
    proxy.inject("POST */oauth/tokens", ALWAYS, Fault::Told(400, told));
    scene.fails("tokens", &[], 2, &["fetch a token", "unknown: <secret>", "catalog.credential"]);
    proxy.calm();
    proxy.inject("POST */oauth/tokens", ALWAYS, Fault::Told(200, "{\"access_token\": \"\", \"canary\": 1}"));
    scene.fails("no token", &[], 2, &["without a token", "oauth2-server-uri"]);
    proxy.calm();
    proxy.inject("POST */oauth/tokens", ALWAYS, Fault::Told(503, "canary"));
    scene.fails("no server for tokens", &[], 1, &["fetch a token", NEXT]);
    proxy.calm();
    scene.recovers();
}

#[test]
fn who_a_catalog_does_not_know_or_let_is_told() {
    let scene = Scene::new(Place::Guarded, "who");
    let client = variable("K2_TEST_REST_CLIENT_ID");
    let credential = |id: &str, secret: &str| format!("{id}:{secret}");
    let secret = variable("K2_TEST_REST_CLIENT_SECRET");
    let wrong = credential(&client, "canary-secret");
    scene.fails("a wrong secret", &[("LAKE_CREDENTIAL", &wrong)], 2, &["invalid_client", "correct catalog.credential"]);
    let reader = credential(&format!("{client}-reader"), &secret);
    scene.fails("a reader", &[("LAKE_CREDENTIAL", &reader)], 2, &["commit to `cold", "may only read", "administrator"]);
    scene.fails("nothing", &[("LAKE_CREDENTIAL", "")], 2, &["catalog.credential_env", "`LAKE_CREDENTIAL` is not set"]);
    // A check finds it before a pass does, and changes nothing.
    let before = scene.case.target("trades").state();
    let check = ["-v", "config", "check"];
    scene.run(&check, &[("LAKE_CREDENTIAL", &reader)]).expect(2).says(&[
        "failed  target cold",
        "commit to `cold",
        "may only read",
    ]);
    scene.run(&check, &[]).expect(0);
    assert_eq!(scene.case.target("trades").state(), before);

    scene.configure(&[("credential_env", "token_env")]);
    scene.fails("a wrong token", &[("LAKE_CREDENTIAL", "canary-token")], 2, &["401", "token_env"]);
    scene.fails("a token of two lines", &[("LAKE_CREDENTIAL", "canary\ntoken")], 2, &["token"]);
    scene.configure(&[("credential_env = 'LAKE_CREDENTIAL'", "")]);
    scene.fails("nobody", &[], 2, &["401", "give catalog.token or catalog.credential"]);
    scene.configure(&[("warehouse = 'lake'", "warehouse = 'other'")]);
    scene.fails("another warehouse", &[], 2, &["no such warehouse", "catalog.warehouse"]);
    scene.configure(&[("warehouse = 'lake'", "warehouse = 's3://lake/warehouse'")]);
    scene.fails("a warehouse by its location", &[], 2, &["catalog.warehouse name what this catalog calls"]);
    scene.configure(&[(&variable("K2_TEST_REST_OAUTH_URL"), &format!("{}/api", variable("K2_TEST_REST_OAUTH_URL")))]);
    scene.fails("another path", &[], 2, &["fetch a token", "catalog."]);
    scene.configure(&[(&variable("K2_TEST_REST_OAUTH_URL"), "http://127.0.0.1:1")]);
    scene.fails("nobody there", &[], 1, &["http://127.0.0.1:1", NEXT]);

    // The client in a file, and a token of it as token and as header.
    fs::write(scene.case.path("client"), format!("{}\n", credential(&client, &secret))).unwrap();
    scene.configure(&[("credential_env = 'LAKE_CREDENTIAL'", "credential_file = 'client'")]);
    scene.recovers_as_it_is(&[("LAKE_CREDENTIAL", "")]);
    scene.case.trades("trades", "2024-03-11 23:59:00", 100);
    let token = token(3600);
    fs::write(scene.case.path("token"), format!("{token}\n")).unwrap();
    scene.configure(&[("credential_env = 'LAKE_CREDENTIAL'", "token_file = 'token'")]);
    scene.recovers_as_it_is(&[]);
    scene.case.trades("trades", "2024-03-12 23:59:00", 100);
    scene.configure(&[("credential_env = 'LAKE_CREDENTIAL'", "header_env = { authorization = 'LAKE_CREDENTIAL' }")]);
    scene.recovers_as_it_is(&[("LAKE_CREDENTIAL", &format!("Bearer {token}"))]);
}

/// A token of the guarded port that lives so long.
fn token(seconds: u32) -> String {
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}&scope=seconds:{seconds}",
        variable("K2_TEST_REST_CLIENT_ID"),
        variable("K2_TEST_REST_CLIENT_SECRET")
    );
    let url = format!("{}/v1/oauth/tokens", variable("K2_TEST_REST_OAUTH_URL"));
    let output = Command::new("curl").args(["-sS", "-d", &form, &url]).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["access_token"].as_str().unwrap().to_owned()
}

/// Whether the guarded port takes it still.
fn is_taken(token: &str) -> bool {
    let url =
        format!("{}/v1/config?warehouse={}", variable("K2_TEST_REST_OAUTH_URL"), variable("K2_TEST_REST_WAREHOUSE"));
    let bearer = format!("Authorization: Bearer {token}");
    let output =
        Command::new("curl").args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, &url]).output();
    output.unwrap().stdout == b"200"
}

#[test]
fn a_pass_outlives_its_token() {
    let scene = Scene::new(Place::Guarded, "outlives");
    scene.configure(&[("properties = {}", "properties = { scope = 'seconds:1' }")]);
    let gate = scene.case.gate("gate");
    let mut pass = scene.case.spawn("offload.toml", &format!("written={}", gate.pause()), &["-v", "run"]);
    gate.wait_for(&mut pass);
    // One that is younger and has ended.
    let younger = token(1);
    wait_until("the token ends", || !is_taken(&younger));
    gate.open();
    pass.wait().expect(0);
    scene.case.target("trades").holds_all("trades");
    scene.run(&["audit", "--checksum"], &[]).expect(0);

    // The server may end a token before its time.
    let (scene, proxy) = behind_proxy(Place::Guarded, "ended");
    let counts = || [proxy.count("POST */oauth/tokens"), proxy.count(COMMIT)];
    let before = counts();
    proxy.inject(COMMIT, ONCE, Fault::Told(401, error!("NotAuthorizedException")));
    scene.run(&["run"], &[]).expect(0);
    assert_eq!(counts(), before.map(|count| count + 2));
    proxy.inject(COMMIT, ALWAYS, Fault::Told(401, error!("NotAuthorizedException")));
    scene.case.trades("trades", "2024-03-11 23:59:00", 100);
    scene.fails("no token is good", &[], 2, &["commit to `cold", "correct catalog.credential"]);
    proxy.calm();
    scene.recovers();
}

/// It ends when the data is written: from then on, the catalog takes it no more.
#[test]
fn a_token_that_nobody_renews_ends_a_pass_cleanly() {
    let (scene, proxy) = behind_proxy(Place::Guarded, "ends");
    scene.configure(&[("credential_env", "token_env")]);
    let before = scene.case.target("trades").state();
    let (gate, token) = (scene.case.gate("gate"), token(3600));
    let mut command = scene.case.command(&["-v", "run"]);
    command.env("LAKE_CREDENTIAL", &token).env("K2_OFFLOAD_FAILPOINTS", format!("written={}", gate.pause()));
    let mut pass = support::Running::start(&mut command);
    gate.wait_for(&mut pass);
    proxy.inject("* *", ALWAYS, Fault::Told(401, error!("NotAuthorizedException")));
    gate.open();
    pass.wait().expect(2).keeps_back(&[&token]).says(&["401", "hint: the token is wrong or has expired"]);
    assert!(proxy.met() > 0);
    assert_eq!(scene.case.target("trades").state(), before);
    proxy.calm();
    scene.recovers();
}

#[test]
fn a_catalog_that_lies_elsewhere_is_refused() {
    let (scene, proxy) = behind_proxy(Place::Rest, "elsewhere");
    scene.configure(&[("type = 'rest'", "type = 'rest'\nwarehouse = 's3://lake/other'")]);
    scene.fails(
        "outside the warehouse",
        &[],
        3,
        &["the table lies at s3://lake/warehouse/", "outside the warehouse s3://lake/other", "catalog.warehouse"],
    );
    // What begins with its name does not lie in it.
    scene.configure(&[("type = 'rest'", "type = 'rest'\nwarehouse = 's3://lake/ware'")]);
    scene.fails("beside the warehouse", &[], 3, &["outside the warehouse s3://lake/ware"]);
    let given = ("type = 'rest'", "type = 'rest'\nwarehouse = 's3a://lake/warehouse/'");
    scene.configure(&[given]);
    proxy.inject(
        CONFIG,
        ALWAYS,
        Fault::Told(200, "{\"defaults\": {}, \"overrides\": {\"warehouse\": \"s3://lake/elsewhere\"}}"),
    );
    scene.fails(
        "a catalog of another warehouse",
        &[],
        3,
        &["keeps its tables in s3://lake/elsewhere, not in", "catalog.uri"],
    );
    proxy.calm();
    scene.configure(&[given]);
    scene.recovers_as_it_is(&[]);
}

#[test]
fn a_catalog_without_register_says_so() {
    let (scene, proxy) = behind_proxy(Place::Rest, "register");
    let metadata = scene.case.target("trades").metadata_location();
    let endpoints = "{\"defaults\": {}, \"overrides\": {}, \"endpoints\": [\"GET /v1/{prefix}/namespaces/{namespace}/tables/{table}\", \
                     \"POST /v1/{prefix}/namespaces/{namespace}/tables/{table}\"]}";
    proxy.inject(CONFIG, ALWAYS, Fault::Told(200, endpoints));
    scene.configure(&[(".trades'", ".again'")]);
    let register = ["-v", "init-tables", "--table", "cold.again", "--register", &metadata];
    scene
        .run(&register, &[])
        .expect(2)
        .says(&["does not offer `POST /v1/{prefix}/namespaces/{namespace}/register`", "hint: "]);
    scene
        .run(&["-v", "init-tables"], &[])
        .expect(2)
        .says(&["does not offer `POST /v1/{prefix}/namespaces/{namespace}/tables`", "hint: "]);
    proxy.calm();
    scene.run(&register, &[]).expect(0);
    scene.recovers();
}

#[test]
fn a_catalog_over_https_needs_a_known_authority() {
    let scene = Scene::new(Place::Rest, "rest_https");
    let (http, https) = (variable("K2_TEST_REST_URL"), variable("K2_TEST_REST_HTTPS_URL"));
    let ca = |file: std::path::PathBuf| format!("[catalog]\nca_file = '{}'", file.display());
    let other = Authority::new("others");
    let expired = Terminator::start(&other.sign("localhost", -1), &http);
    let named = Terminator::start(&other.sign("other.example", 1), &http);
    for (what, url, file, says) in [
        ("unknown", https.clone(), None, ["UnknownIssuer", "catalog.ca_file"]),
        ("another authority", https.clone(), Some(other.file()), ["UnknownIssuer", "catalog.ca_file"]),
        ("expired", expired.url.clone(), Some(other.file()), ["expired", "renew it"]),
        ("another host", named.url.clone(), Some(other.file()), ["other.example", "subjectAltName"]),
        ("no TLS", http.replace("http:", "https:"), None, ["does not speak TLS", "http://"]),
        ("no file", https.clone(), Some(scene.case.path("nowhere")), ["catalog.ca_file", "nowhere"]),
    ] {
        let file = file.map_or("[catalog]".to_owned(), ca);
        scene.configure(&[(&http, &url), ("[catalog]", &file)]);
        scene.fails(what, &[], 2, &says);
    }
    scene.configure(&[(&http, &https.replace("https:", "http:"))]);
    scene.fails("no http", &[], 1, &[NEXT]);
    scene.configure(&[(&http, &https), ("[catalog]", &ca(ca_file()))]);
    scene.recovers_as_it_is(&[]);
    scene.case.trades("trades", "2024-03-11 23:59:00", 100);
    scene.configure(&[(&http, &https)]);
    scene.recovers_as_it_is(&[("SSL_CERT_FILE", ca_file().to_str().unwrap())]);
}

/// The levels of namespaces, and characters that paths and URLs spell otherwise.
#[test]
fn namespaces_have_levels_and_any_characters() {
    let all = ["b.c.trades", "two words.tra'des", "größe-1.trades", "a+b&c=d.trades", "100%.trades"];
    in_parallel(2, vec![Place::Sqlite, Place::Postgres, Place::Rest, Place::Guarded], |place| {
        // Jetty, in which the REST catalog runs, lets no encoded % pass.
        let names = if place.is_rest() { &all[..4] } else { &all[..] };
        let case = Case::at(place, "names");
        case.bronze("trades");
        case.trades("trades", "2024-03-10 23:59:00", 100);
        let table = |name: &&str| TRADES.replace("'cold.trades'", &format!("\"cold.{name}\""));
        case.config(&names.iter().map(table).collect::<String>());
        case.run(&["config", "check", "--offline"]).expect(0);
        case.init_tables();
        case.init_tables();
        for table in case.pass()["tables"].as_array().unwrap() {
            assert_eq!(table["rows_written"], 100, "{place:?} {table:#}");
        }
        case.run(&["audit", "--checksum"]).expect(0);
        for name in &names[..3] {
            let (levels, table) = name.rsplit_once('.').unwrap();
            let namespace = format!("{}.{levels}", case.lake.as_ref().unwrap().namespace);
            Target { case: &case, namespace, table: table.to_owned() }.holds_all("trades");
        }
    });
}

#[test]
fn who_postgresql_does_not_know_or_let_is_told() {
    let scene = Scene::new(Place::Postgres, "pg");
    let database = scene.case.lake.as_ref().unwrap().postgres().url.rsplit_once('/').unwrap().1.to_owned();
    scene.fails("a wrong password", &[("LAKE_PASSWORD", "canary-password")], 2, &["28P01", "password_env"]);
    scene.fails("no password", &[("LAKE_PASSWORD", "")], 2, &["catalog.password_env", "not set"]);
    let change = |from: &str, to: &str, says: &[&str], exit: i32| {
        scene.configure(&[(from, to)]);
        scene.fails(to, &[], exit, says);
    };
    change(&format!("/{database}?"), "/nowhere?", &["3D000", "correct the database"], 2);
    change("//lake@", "//nobody@", &["28P01", "correct the user"], 2);
    change("sslmode=disable", "sslmode=verify-full", &["UnknownIssuer", "ca_file"], 2);
    change("sslmode=disable", "sslmode=perhaps", &["sslmode"], 2);
    let server = variable("K2_TEST_PG_URL").rsplit(['@', '/']).nth(1).unwrap().to_owned();
    change(&server, "127.0.0.1:1", &["127.0.0.1:1", NEXT], 1);
    // More than libpq asks for: who encrypts wants to know for whom.
    change("sslmode=disable", "sslmode=require", &["UnknownIssuer", "ca_file"], 2);
    scene.configure(&[("sslmode=disable", "sslmode=prefer")]);
    scene.recovers_as_it_is(&[]);
    scene.case.trades("trades", "2024-03-11 23:59:00", 50);
    let ca = format!("[catalog]\nca_file = '{}'", ca_file().display());
    scene.configure(&[("sslmode=disable", "sslmode=verify-full"), ("[catalog]", &ca)]);
    scene.recovers_as_it_is(&[]);
}

/// What `config check` prints is enough, and each of it is needed.
#[test]
fn the_grants_of_postgresql_are_as_printed() {
    let scene = Scene::new(Place::Postgres, "pg_grants");
    let url = scene.case.lake.as_ref().unwrap().postgres().url.clone();
    let role = format!("r{}", scene.case.database);
    let sql = |statement: &str| psql(&url, statement);
    sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'role-canary'; REVOKE ALL ON SCHEMA public FROM public"));
    scene.configure(&[("//lake@", &format!("//{role}@"))]);
    let variables = [("LAKE_PASSWORD", "role-canary")];
    let document = scene.run(&["--format", "json", "config", "check"], &variables).json();
    let grants = document["catalog_grants"].as_array().unwrap();
    let statements: Vec<&str> = grants.iter().map(|grant| grant["statement"].as_str().unwrap()).collect();
    let (needed, optional): (Vec<_>, Vec<_>) =
        statements.iter().zip(grants).partition(|(_, grant)| grant["without"].is_null());
    assert_eq!((needed.len(), optional.len()), (3, 1), "{document:#}");
    let needed: Vec<&str> = needed.into_iter().map(|(statement, _)| *statement).collect();
    let new_table =
        scene.good.replace("//lake@", &format!("//{role}@")) + &TRADES.replace("'cold.trades'", "'cold.new'");
    for left_out in 0..=needed.len() {
        for (number, grant) in needed.iter().enumerate() {
            sql(&match number == left_out {
                true => grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "),
                false => (*grant).to_owned(),
            });
        }
        let whole = left_out == needed.len();
        // A namespace is made with its first table.
        fs::write(scene.case.path("offload.toml"), new_table.replace("cold.", "warm.")).unwrap();
        let made = scene.run(&["init-tables"], &variables);
        assert_eq!(made.code == Some(0), whole, "{left_out}\n{}", made.all());
        scene.configure(&[("//lake@", &format!("//{role}@"))]);
        if whole {
            scene.recovers_as_it_is(&variables);
        }
    }
    // Each of the three rights on the tables.
    scene.case.trades("trades", "2024-03-11 23:59:00", 100);
    for right in ["SELECT", "UPDATE"] {
        sql(&format!("REVOKE {right} ON iceberg_tables FROM {role}"));
        scene.configure(&[("//lake@", &format!("//{role}@"))]);
        scene.fails(right, &variables, 2, &["42501", "grant it to the user of the URI"]);
        scene
            .run(&["config", "check"], &variables)
            .expect(2)
            .says(&["42501", "GRANT SELECT, INSERT, UPDATE ON iceberg_tables TO"]);
        sql(&format!("GRANT {right} ON iceberg_tables TO {role}"));
    }
    scene.recovers();
    sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
