//! The servers of scripts/lake are as strict as real ones: what other tests find accepted, these would have refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use support::lake::{Postgres, Prefix, S3, ca_file, https_before, psql, variable};
use support::server;

/// What curl got: the status, then the body.
fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    // In a test environment these could name an authority of their own.
    command.env_remove("CURL_CA_BUNDLE").env_remove("SSL_CERT_FILE");
    let output = command.args(["-sS", "-w", "%{stderr}%{http_code}\n"]).args(arguments).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

fn signed(s3: &S3, secret: &str, object: &str, arguments: &[&str]) -> String {
    let user = format!("{}:{secret}", s3.access_key);
    let unsigned = "x-amz-content-sha256: UNSIGNED-PAYLOAD";
    let mut all = vec!["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user, "-H", unsigned];
    let token = s3.session_token.as_ref().map(|token| format!("x-amz-security-token: {token}"));
    if let Some(token) = &token {
        all.extend(["-H", token]);
    }
    all.extend(arguments);
    let url = format!("{}/{}/{object}", s3.url, s3.bucket);
    all.push(&url);
    curl(&all)
}

#[test]
fn s3_wants_the_right_secret_and_keeps_conditions() {
    let (s3, prefix) = (S3::shared(), Prefix::new("strict"));
    let object = format!("{}/object", prefix.url().rsplit('/').next().unwrap());
    let put = |secret: &str| signed(&s3, secret, &object, &["-X", "PUT", "-d", "rows", "-H", "If-None-Match: *"]);

    let refused = put("wrong");
    assert!(refused.starts_with("403\n") && refused.contains("SignatureDoesNotMatch"), "{refused}");
    assert!(curl(&[&format!("{}/{}/{object}", s3.url, s3.bucket)]).starts_with("403\n"));
    assert!(prefix.objects().is_empty());

    assert_eq!(put(&s3.secret_key), "200\n");
    assert!(put(&s3.secret_key).starts_with("412\n"), "a second writer under If-None-Match");
    assert_eq!(prefix.objects(), ["object"]);
    assert_eq!(std::fs::read(prefix.file(&format!("{}/object", prefix.url()))).unwrap(), b"rows");

    let elsewhere = S3 { bucket: "nowhere".to_owned(), ..S3::shared() };
    let missing = signed(&elsewhere, &s3.secret_key, "object", &[]);
    assert!(missing.starts_with("404\n") && missing.contains("NoSuchBucket"), "{missing}");
}

#[test]
fn keys_of_a_session_are_nothing_without_its_token() {
    let session = S3::moto_session();
    let listed = signed(&session, &session.secret_key, "", &[]);
    assert!(listed.starts_with("200\n"), "{listed}");
    let bare = S3 { session_token: None, ..S3::moto_session() };
    assert!(signed(&bare, &bare.secret_key, "", &[]).starts_with("403\n"));
}

#[test]
fn the_catalog_wants_a_token_and_vends_keys_to_those_who_ask() {
    let url = variable("K2_TEST_REST_OAUTH_URL");
    let refused = curl(&[&format!("{url}/v1/config")]);
    assert!(refused.starts_with("401\n") && refused.contains("NotAuthorizedException"), "{refused}");

    let token = |client: &str, secret: &str| {
        let form = format!("grant_type=client_credentials&client_id={client}&client_secret={secret}");
        curl(&["-d", &form, &format!("{url}/v1/oauth/tokens")])
    };
    let (client, secret) = (variable("K2_TEST_REST_CLIENT_ID"), variable("K2_TEST_REST_CLIENT_SECRET"));
    assert!(token(&client, "wrong").starts_with("401\n"));
    let bearer = |answer: String| {
        let answer: serde_json::Value = serde_json::from_str(answer.strip_prefix("200\n").unwrap()).unwrap();
        format!("Authorization: Bearer {}", answer["access_token"].as_str().unwrap())
    };
    let writer = bearer(token(&client, &secret));
    let reader = bearer(token(&format!("{client}-reader"), &secret));

    let config = |warehouse: &str| curl(&["-H", &writer, &format!("{url}/v1/config?warehouse={warehouse}")]);
    assert!(config("another").starts_with("404\n"));
    let config = config(&variable("K2_TEST_REST_WAREHOUSE"));
    let config: serde_json::Value = serde_json::from_str(config.strip_prefix("200\n").unwrap()).unwrap();
    let namespaces = format!("{url}/v1/{}/namespaces", config["overrides"]["prefix"].as_str().unwrap());
    assert!(curl(&["-H", &writer, &format!("{url}/v1/namespaces")]).starts_with("404\n"));

    let namespace = format!("strict_{}", uuid::Uuid::new_v4().simple());
    let json = ["-H", "Content-Type: application/json"];
    let create = format!("{{\"namespace\": [\"{namespace}\"]}}");
    let create = |bearer: &str| curl(&[&["-H", bearer, "-d", &create], &json[..], &[&namespaces]].concat());
    assert!(create(&reader).starts_with("403\n"));
    assert!(create(&writer).starts_with("200\n"));
    assert!(create(&writer).starts_with("409\n"));

    let table = r#"{"name": "t", "schema": {"type": "struct", "fields": [{"id": 1, "name": "n", "required": false, "type": "long"}]}}"#;
    let tables = format!("{namespaces}/{namespace}/tables");
    let made = curl(&[&["-H", writer.as_str(), "-d", table], &json[..], &[&tables]].concat());
    assert!(made.starts_with("200\n"), "{made}");
    let load = |more: &[&str]| curl(&[&["-H", writer.as_str()], more, &[&format!("{tables}/t")]].concat());
    assert!(!load(&[]).contains("s3.secret-access-key"));
    let vended = load(&["-H", "X-Iceberg-Access-Delegation: vended-credentials"]);
    assert!(vended.contains("\"storage-credentials\"") && vended.contains("s3.secret-access-key"), "{vended}");
    assert!(!vended.contains(&variable("K2_TEST_S3_SECRET_KEY")), "{vended}");
}

#[test]
fn https_is_of_the_private_authority_alone() {
    let addresses = [variable("K2_TEST_REST_HTTPS_URL"), https_before(&server::shared_url())];
    for address in addresses {
        let path = if address == variable("K2_TEST_REST_HTTPS_URL") { "/v1/config" } else { "/ping" };
        let by_name = address.replace("127.0.0.1", "localhost");
        for url in [format!("{address}{path}"), format!("{by_name}{path}")] {
            assert!(curl(&["--cacert", ca_file().to_str().unwrap(), &url]).starts_with("200\n"), "{url}");
            assert!(curl(&[&url]).contains("certificate"), "{url}");
        }
    }
}

#[test]
fn postgresql_wants_a_password_and_has_a_certificate() {
    let database = Postgres::new("strict");
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let verified = format!("{}?sslmode=verify-full&sslrootcert={}", database.url, ca_file().display());
    assert_eq!(psql(&verified, encrypted), "t");
    assert_eq!(psql(&format!("{}?sslmode=disable", database.url), encrypted), "f");
    database.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)");
    assert_eq!(database.sql("SELECT n, -n FROM t ORDER BY n"), "1|-1\n2|-2");

    let user = database.url.split([':', '@']).nth(2).unwrap();
    let refused = std::panic::catch_unwind(|| psql(&database.url.replace(user, "wrong"), "SELECT 1"));
    let refused = refused.unwrap_err();
    assert!(refused.downcast_ref::<String>().unwrap().contains("password authentication failed"));
}
