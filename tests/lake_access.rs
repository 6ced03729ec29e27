//! Who may not do what a pass needs, or is not who he should be, before S3 and catalogs: each bad call ends with the exit code that its cause has and a
//! hint that helps, tells no secret and leaves nothing behind; with the cause gone, the next pass brings exactly the rows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::json;
use support::faults::{ALWAYS, Fault, FaultyProxy};
use support::lake::{S3, ca_file, variable};
use support::scene::Scene;
use support::tls::{Authority, Terminator};
use support::{Case, Place, TRADES, finish};

/// What a store answers to requests like a pattern.
struct OfStore {
    pattern: &'static str,
    status: u16,
    body: &'static str,
    exit: i32,
    says: &'static [&'static str],
}

macro_rules! code {
    ($code:literal) => {
        concat!(
            "<?xml version=\"1.0\"?><Error><Code>",
            $code,
            "</Code><Message>plain &#34;words&#34;</Message><StringToSign>canary</StringToSign></Error>"
        )
    };
}

const fn of_store(
    pattern: &'static str,
    status: u16,
    body: &'static str,
    exit: i32,
    says: &'static [&'static str],
) -> OfStore {
    OfStore { pattern, status, body, exit, says }
}

const POLICY: &str = "config check` prints what a bucket's policy must allow";
const STORE: [OfStore; 25] = [
    of_store("GET *", 403, code!("AccessDenied"), 2, &["read s3://", "AccessDenied: ", "\"words\"", POLICY]),
    of_store("PUT *", 403, code!("AccessDenied"), 2, &["write s3://", "AccessDenied: ", POLICY]),
    of_store("PUT */metadata/*", 403, code!("AccessDenied"), 2, &["write the commit of `cold", "AccessDenied", POLICY]),
    of_store("* *", 403, "", 2, &["the store answers 403", POLICY]),
    of_store("* *", 401, "", 2, &["the store answers 401", "correct the credentials"]),
    of_store("* *", 403, code!("SignatureDoesNotMatch"), 2, &["SignatureDoesNotMatch", "correct the credentials"]),
    of_store("* *", 403, code!("InvalidAccessKeyId"), 2, &["correct the credentials"]),
    of_store("* *", 403, code!("RequestTimeTooSkewed"), 2, &["set the clock of this host"]),
    of_store("* *", 400, code!("ExpiredToken"), 2, &["ExpiredToken", "AWS_SESSION_TOKEN"]),
    of_store("* *", 404, code!("NoSuchBucket"), 2, &["NoSuchBucket", "create the bucket"]),
    of_store("* *", 400, code!("AuthorizationHeaderMalformed"), 2, &["another region", "s3.region"]),
    of_store("* *", 301, code!("PermanentRedirect"), 2, &["PermanentRedirect", "another region", "s3.region"]),
    of_store("* *", 301, "", 2, &["PermanentRedirect", "another region"]),
    of_store("PUT *", 501, code!("NotImplemented"), 2, &["NotImplemented", "s3.sse.type"]),
    of_store("PUT *", 400, code!("KMS.NotFoundException"), 2, &["s3.sse.key"]),
    of_store("PUT *", 403, code!("QuotaExceeded"), 1, &["the store is full"]),
    of_store("PUT *", 507, code!("XMinioStorageFull"), 1, &["the store is full"]),
    of_store("PUT *", 503, code!("SlowDown"), 1, &["SlowDown", "the next pass tries again"]),
    of_store("GET *", 503, code!("SlowDown"), 1, &["SlowDown", "the next pass tries again"]),
    of_store("PUT *", 429, code!("TooManyRequests"), 1, &["TooManyRequests", "the next pass tries again"]),
    of_store("PUT *", 500, code!("InternalError"), 1, &["InternalError", "the next pass tries again"]),
    of_store("PUT *", 400, code!("RequestTimeout"), 1, &["RequestTimeout", "the next pass tries again"]),
    of_store("* *", 502, "<html>canary</html>", 1, &["the store answers 502", "the next pass tries again"]),
    of_store("PUT *", 403, code!("lake/secret+key="), 2, &["<secret>"]),
    of_store("GET *.json", 404, code!("NoSuchKey"), 3, &["no such file", "restore the warehouse"]),
];

#[test]
fn what_a_store_answers_is_told_with_what_to_do() {
    let mut proxy = None;
    let scene = Scene::with(Place::Sqlite, "store", |lake| {
        let faulty = FaultyProxy::http(&lake.s3_url);
        lake.s3_url.clone_from(&faulty.url);
        proxy = Some(faulty);
    });
    let proxy = proxy.unwrap();
    for OfStore { pattern, status, body, exit, says } in STORE {
        proxy.inject(pattern, ALWAYS, Fault::Told(status, body));
        scene.fails(&format!("{pattern} {status} {body}"), &[], exit, says);
        proxy.calm();
    }
    scene.recovers();
}

/// What was written cannot be deleted: it stays, is told, and the next pass is not hindered.
#[test]
fn who_may_not_delete_leaves_files_and_says_so() {
    let mut proxy = None;
    let scene = Scene::with(Place::Sqlite, "undeleted", |lake| {
        let faulty = FaultyProxy::http(&lake.s3_url);
        lake.s3_url.clone_from(&faulty.url);
        proxy = Some(faulty);
    });
    let proxy = proxy.unwrap();
    let before = scene.case.target("trades").metadata_file();
    for pattern in ["POST *?delete", "DELETE *"] {
        proxy.inject(pattern, ALWAYS, Fault::Told(403, code!("AccessDenied")));
    }
    proxy.inject("PUT */metadata/*", ALWAYS, Fault::Told(403, code!("AccessDenied")));
    scene.run(&["run"], &[]).expect(2).says(&["left behind", "AccessDenied", POLICY]);
    assert_eq!(scene.case.target("trades").metadata_file(), before);
    scene.run(&["config", "check"], &[]).expect(2).says(&["failed  warehouse s3://", "failed  target", "AccessDenied"]);
    proxy.calm();
    scene.run(&["run"], &[]).expect(0);
    scene.case.target("trades").holds_all("trades");
    scene.run(&["audit", "--checksum"], &[]).expect(0);
}

#[test]
fn keys_that_are_wrong_missing_or_elsewhere_are_told() {
    let scene = Scene::new(Place::Sqlite, "keys");
    const CREDENTIALS: &str = "correct the credentials";
    let file = scene.case.path("credentials");
    let s3 = S3::shared();
    let keys = format!(
        "[default]\naws_access_key_id = NOBODY\naws_secret_access_key = canary-key\n[lake]\naws_access_key_id = {}\naws_secret_access_key = {}\n\
         [profile sso]\n[sso]\nsso_session = x\n",
        s3.access_key, s3.secret_key
    );
    fs::write(&file, keys).unwrap();
    fs::write(scene.case.path("garbled"), "canary\n").unwrap();
    let file = file.to_str().unwrap();
    let none = ("AWS_SECRET_ACCESS_KEY", "");
    let nobody = [
        ("AWS_ACCESS_KEY_ID", ""),
        none,
        ("HOME", "/nowhere"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&nobody[..], more].concat();

    scene.fails(
        "a wrong secret",
        &[("AWS_SECRET_ACCESS_KEY", "canary-secret")],
        2,
        &["SignatureDoesNotMatch", CREDENTIALS],
    );
    scene.fails("a wrong key", &[("AWS_ACCESS_KEY_ID", "NOBODY")], 2, &["InvalidAccessKeyId", CREDENTIALS]);
    scene.fails("half of a key", &[none], 2, &["set up access to s3://", "SecretAccessKey", "AWS_"]);
    scene.fails("a role that does not answer", &nobody, 1, &["does not answer", "the next pass tries again"]);
    let full = with(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/")]);
    scene.fails("half of EKS", &full, 2, &["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "EKS"]);
    let in_file = [("AWS_SHARED_CREDENTIALS_FILE", file)];
    scene.fails("a profile's wrong key", &[&nobody[..3], &in_file].concat(), 2, &["InvalidAccessKeyId", CREDENTIALS]);
    let profile = |name| [&nobody[..3], &in_file, &[("AWS_PROFILE", name)]].concat();
    scene.fails("no such profile", &profile("other"), 2, &["no profile `other`", "AWS_PROFILE"]);
    scene.fails("a profile without keys", &profile("sso"), 2, &["`sso`", "no access key", "SSO"]);
    scene.configure(&[("properties = {", "properties = { \"s3.credentials-file\" = 'nowhere',")]);
    scene.fails("no such file", &[], 2, &["nowhere does not exist", "s3.credentials-file"]);
    scene.configure(&[("properties = {", "properties = { \"s3.credentials-file\" = 'garbled',")]);
    scene.fails("no file of profiles", &[], 2, &["line 2", "garbled"]);
    scene.configure(&[("\"s3.region\" = 'us-east-1'", "\"s3.region\" = 'eu-west-1'")]);
    scene.fails("another region", &[], 2, &["us-east-1", "another region", "s3.region"]);
    scene.configure(&[(&variable("K2_TEST_S3_URL"), "http://127.0.0.1:1")]);
    scene.fails("nobody there", &[], 1, &["cannot connect to the store", "s3.endpoint"]);

    // The file that the configuration names goes before the environment.
    scene.configure(&[(
        "properties = {",
        "properties = { \"s3.credentials-file\" = 'credentials', \"s3.profile-name\" = 'lake',",
    )]);
    scene.recovers_as_it_is(&[("AWS_ACCESS_KEY_ID", "NOBODY"), ("AWS_SECRET_ACCESS_KEY", "canary-secret")]);
    scene.case.trades("trades", "2024-03-11 23:59:00", 100);
    scene.recovers_as_it_is(&profile("lake"));
}

#[test]
fn a_bucket_that_is_not_there_is_told() {
    let scene = Scene::new(Place::Sqlite, "bucket");
    let warehouse = scene.case.lake.as_ref().unwrap().prefix.url();
    scene.configure(&[(&warehouse, "s3://nowhere/warehouse"), ("catalog.db", "other.db")]);
    let texts = ["NoSuchBucket", "catalog.warehouse"];
    scene.run(&["-v", "init-tables"], &[]).expect(2).says(&texts).says(&["hint: "]);
    scene.run(&["-v", "config", "check"], &[]).expect(3).says(&texts);
    scene.recovers();
}

/// How the store encrypts an object, by which key, and the SHA-256 of its content.
type Stored = (Option<String>, Option<String>, String);

#[test]
fn keys_of_a_role_or_a_session_are_as_good() {
    let case = Case::new("moto");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 23:59:00", 200);
    let (moto, session) = (S3::moto(), S3::moto_session());
    let store = FaultyProxy::http(&moto.url);
    let configure = |more: &str| {
        let catalog = format!(
            "[catalog]\nwarehouse = 's3://{}/{}'\nproperties = {{ \"s3.endpoint\" = '{}', \"s3.region\" = 'us-east-1'{more} }}\n",
            moto.bucket, case.database, store.url
        );
        case.config_file("offload.toml", "", &catalog, TRADES);
    };
    configure("");
    let token = session.session_token.clone().unwrap();
    let of_session = [
        ("AWS_ACCESS_KEY_ID", session.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &session.secret_key),
        ("AWS_SESSION_TOKEN", &token),
    ];
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = finish(case.command(arguments).envs(variables.iter().copied()));
        output.keeps_back(&[&token, &session.secret_key, &moto.secret_key])
    };
    run(&["-vv", "init-tables"], &of_session).expect(0);
    run(&["-vv", "run"], &of_session).expect(0);
    run(&["-vv", "run"], &of_session[..2]).expect(2).says(&["InvalidAccessKeyId", "correct the credentials"]);
    let document = run(&["-vv", "--format", "json", "config", "check"], &of_session).expect(0).json();
    let rights = &document["storage"][0];
    assert_eq!(rights["bucket"], format!("s3://{}", moto.bucket));
    let objects = format!("arn:aws:s3:::{}/{}/*", moto.bucket, case.database);
    assert_eq!(rights["policy"]["Statement"][0]["Resource"], serde_json::json!([objects]));

    // The keys of a role, from what stands for an instance's metadata.
    let keys = format!(
        "{{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"LastUpdated\": \"2024-01-01T00:00:00Z\", \"Expiration\": \"2100-01-01T00:00:00Z\", \
         \"AccessKeyId\": \"{}\", \"SecretAccessKey\": \"{}\", \"Token\": \"{token}\"}}",
        session.access_key, session.secret_key
    );
    let keys: &'static str = Box::leak(keys.into_boxed_str());
    let role = FaultyProxy::http("http://127.0.0.1:1");
    role.inject("PUT */latest/api/token", ALWAYS, Fault::Told(200, "token"));
    role.inject("GET */security-credentials/", ALWAYS, Fault::Told(200, "role"));
    role.inject("GET */security-credentials/role", ALWAYS, Fault::Told(200, keys));
    role.inject("GET /eks", ALWAYS, Fault::Told(200, keys));
    fs::write(case.path("token"), "token-of-pod").unwrap();
    let (eks, file) = (format!("{}/eks", role.url), case.path("token"));
    for (number, variables) in [
        vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", role.url.as_str())],
        vec![
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &eks),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        case.trades("trades", &format!("2024-03-1{} 23:59:00", number + 1), 100);
        let variables = [&variables[..], &[("HOME", "/nowhere")]].concat();
        let document = run(&["-vv", "--format", "json", "run"], &variables).expect(0).json();
        assert_eq!(support::only_table(&document)["rows_written"], 100);
    }
    role.calm();
    role.inject("* *", ALWAYS, Fault::Told(403, "canary"));
    let metadata = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", role.url.as_str()), ("HOME", "/nowhere")];
    run(&["-vv", "run"], &metadata).expect(2).keeps_back(&["canary"]).says(&["gives none", "role"]);

    // Encryption by the store, and checksums for it to compare, of every object that a pass writes.
    let stored = || -> BTreeMap<String, Stored> {
        let catalog = json!({
            "s3.endpoint": moto.url,
            "s3.region": moto.region,
            "s3.access-key-id": moto.access_key,
            "s3.secret-access-key": moto.secret_key,
        });
        let location = format!("s3://{}/{}", moto.bucket, case.database);
        let stored = case.target("trades").ask("stored", json!({"catalog": catalog, "location": location}));
        serde_json::from_value(stored).unwrap()
    };
    for (number, (more, encryption, key, has_checksum)) in [
        ("", None, None, false),
        (", \"s3.sse.type\" = 's3'", Some("AES256"), None, false),
        (", \"s3.sse.type\" = 'kms', \"s3.sse.key\" = 'some-key'", Some("aws:kms"), Some("some-key"), false),
        (", \"s3.checksum-enabled\" = 'true'", None, None, true),
    ]
    .into_iter()
    .enumerate()
    {
        configure(more);
        case.trades("trades", &format!("2024-03-2{number} 23:59:00"), 100);
        let before = stored();
        let document = run(&["--format", "json", "run"], &of_session).expect(0).json();
        assert_eq!(support::only_table(&document)["rows_written"], 100, "{more}");
        run(&["audit", "--checksum"], &of_session).expect(0);
        let mut written = stored();
        written.retain(|name, now| before.get(name) != Some(now));
        for kind in [".parquet", ".avro", ".metadata.json", "/version-hint.text"] {
            assert!(written.keys().any(|name| name.ends_with(kind)), "no {kind}: {written:#?}");
        }
        for (name, (encrypted, by, digest)) in &written {
            assert_eq!((encrypted.as_deref(), by.as_deref()), (encryption, key), "{more}: {name}");
            let head = store.last_head("PUT", name.rsplit_once('/').unwrap().1);
            assert_eq!(head.contains("x-amz-checksum-"), has_checksum, "{more}: {name}\n{head}");
            let is_right = head.contains(&format!("x-amz-checksum-sha256: {digest}\r\n"));
            assert_eq!(is_right, has_checksum, "{more}: {name}\n{head}");
        }
    }
}

#[test]
fn a_store_over_https_needs_a_known_authority() {
    let scene = Scene::new(Place::Sqlite, "s3_https");
    let (http, https) = (variable("K2_TEST_S3_URL"), variable("K2_TEST_S3_HTTPS_URL"));
    scene.configure(&[(&http, &https)]);
    scene.fails("unknown", &[], 2, &["certificate is not to be trusted", "catalog.ca_file"]);
    scene.configure(&[(&http, &http.replace("http:", "https:"))]);
    scene.fails("no TLS", &[], 2, &["does not speak TLS", "http://"]);
    scene.configure(&[(&http, &https.replace("https:", "http:"))]);
    scene.fails("no http", &[], 1, &["the next pass tries again"]);
    let other = Authority::new("others");
    let ca = |file: PathBuf| format!("[catalog]\nca_file = '{}'", file.display());
    scene.configure(&[(&http, &https), ("[catalog]", &ca(other.file()))]);
    scene.fails("another authority", &[], 2, &["certificate is not to be trusted", "catalog.ca_file"]);
    let expired = Terminator::start(&other.sign("localhost", -1), &http);
    scene.configure(&[(&http, &expired.url), ("[catalog]", &ca(other.file()))]);
    scene.fails("expired", &[], 2, &["certificate is not to be trusted", "have expired"]);
    scene.configure(&[(&http, &https), ("[catalog]", &ca(scene.case.path("nowhere")))]);
    scene.fails("no file", &[], 2, &["nowhere", "ca_file"]);
    scene.configure(&[(&http, &https), ("[catalog]", &ca(ca_file()))]);
    scene.recovers_as_it_is(&[]);
    scene.case.trades("trades", "2024-03-11 23:59:00", 100);
    scene.configure(&[(&http, &https)]);
    scene.recovers_as_it_is(&[("SSL_CERT_FILE", ca_file().to_str().unwrap())]);
}

/// Each is given up within limits that the configuration has.
#[test]
fn a_store_that_says_nothing_is_not_waited_for_without_end() {
    let scene = Scene::new(Place::Sqlite, "silent");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let limits = ("[catalog]", "[catalog]\ntimeout = '1s'\nconnect_timeout = '1s'");
    scene.configure(&[(&variable("K2_TEST_S3_URL"), &url), limits]);
    let before = scene.case.target("trades").state();
    let pass = scene.case.spawn("offload.toml", "", &["-v", "run"]);
    pass.wait_until_over().expect(1).says(&["did not answer in time", "catalog.timeout", "\nhint: "]);
    assert_eq!(scene.case.target("trades").state(), before);
    scene.recovers();
}
