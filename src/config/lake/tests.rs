//! What `[catalog]` and `[state]` say, and what of it is refused.

use std::path::Path;

use super::properties::known;
use crate::config::tests::{MINIMAL, parse};
use crate::config::{Auth, Backend, ClickHouse, Config, Records};

/// A lake of many hosts, with a secret behind everything that may have one.
pub(in crate::config) const REST: &str = "[catalog]\ntype = 'rest'\nuri = 'https://catalog.example/api/'\nwarehouse = 'cold'\ntoken_env = 'PW'\nca_file = 'ca.pem'\n\
    header_env = { X-Api-Key = 'PW' }\n[catalog.properties]\nprefix = 'p'\nscope = 'all'\n'header.x-team' = 'k2'\n\
    's3.endpoint' = 'https://s3.example'\n's3.region' = 'eu-central-1'\n's3.path-style-access' = 'true'\n's3.credentials-file' = 'keys'\n";

#[test]
fn a_rest_catalog_is_read_with_all_its_keys() {
    let config = parse(&format!("{REST}{MINIMAL}")).unwrap();
    let Backend::Rest(rest) = &config.catalog.backend else { panic!("{config:?}") };
    assert_eq!((rest.url.as_str(), config.catalog.warehouse.as_str()), ("https://catalog.example/api", "cold"));
    assert!(matches!(&rest.auth, Auth::Token(token) if token.expose() == "s3cret"));
    let headers: Vec<_> = rest.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(headers, [("x-api-key", "s3cret"), ("x-team", "k2")]);
    assert_eq!(rest.properties.keys().collect::<Vec<_>>(), ["prefix", "scope"]);
    let storage = &config.catalog.storage;
    assert_eq!((storage.properties.len(), storage.properties["s3.credentials-file"].as_str()), (4, "/etc/x/keys"));
    assert_eq!((&rest.ca_file, &storage.ca_file), (&Some("/etc/x/ca.pem".into()), &Some("/etc/x/ca.pem".into())));
    assert!(!format!("{config:?}").contains("s3cret"));
    assert!(config.notify.secrets.contains(&"PW".to_owned()));
}

#[test]
fn a_credential_is_an_id_and_a_secret_or_a_secret_alone() {
    for (credential, id, secret) in [("id:a:b", Some("id"), "a:b"), ("a", None, "a")] {
        let text = format!("[catalog]\ntype = 'rest'\nuri = 'http://c'\ncredential_env = 'C'\n{MINIMAL}");
        let config = Config::parse(&text, Path::new("/etc/x"), |_| Some(credential.to_owned())).unwrap();
        let Backend::Rest(rest) = config.catalog.backend else { panic!("no REST") };
        let Auth::Client(found, key) = rest.auth else { panic!("no client") };
        assert_eq!((found.as_deref(), key.expose()), (id, secret));
        assert_eq!(config.catalog.warehouse, "");
    }
}

#[test]
fn catalogs_and_records_in_databases_are_read_with_their_keys() {
    let of = |uri: &str| format!("uri = '{uri}'\npassword_env = 'PW'\nca_file = 'ca.pem'\n");
    // Of several hosts, the one that takes changes.
    let postgres = "postgresql://k2@db.example:5433,standby.example/lake?sslmode=require";
    let config = parse(&format!("[catalog]\n{}[state]\n{}{MINIMAL}", of(postgres), of(postgres))).unwrap();
    let (Backend::Postgres(catalog), Some(Records::Postgres(records))) = (config.catalog.backend, config.records)
    else {
        panic!("no PostgreSQL")
    };
    assert_eq!(format!("{:?}", catalog.timeout), "60s");
    for found in [catalog, records] {
        assert_eq!((found.url.as_str(), found.password.expose()), (postgres, "s3cret"));
        assert_eq!(found.ca_file, Some("/etc/x/ca.pem".into()));
    }
    let config = parse(&format!("[state]\n{}{MINIMAL}", of("https://k2@ch.example:8443/state"))).unwrap();
    let Some(Records::ClickHouse(found)) = config.records else { panic!("no ClickHouse") };
    let ClickHouse { url, user, database, password, .. } = *found;
    assert_eq!((url.as_str(), user.as_str(), database.as_str()), ("https://ch.example:8443", "k2", "state"));
    assert_eq!(password.expose(), "s3cret");
}

/// Each with what of the file is wrong; `s3cret` stands for what must not be repeated.
#[test]
fn lakes_that_cannot_be_meant_are_refused_by_key() {
    let rest = "[catalog]\ntype = 'rest'\nuri = 'https://c'\n";
    let of = |property: &str| format!("{rest}[catalog.properties]\n{property}\n");
    let environment = |name: &str| match name {
        "EMPTY" => Some(String::new()),
        "LINES" => Some("s3cret\ns3cret".to_owned()),
        name => (name == "PW").then(|| "s3cret".to_owned()),
    };
    for (text, key, reason) in [
        ("[catalog]\ntype = 'hive'\n".to_owned(), "catalog.type", "neither sql nor rest"),
        ("[catalog]\nuri = 'mysql://u:s3cret@h/d'\n".to_owned(), "catalog.uri", "neither sqlite"),
        ("[catalog]\nuri = 'sqlite:///'\n".to_owned(), "catalog.uri", "neither sqlite"),
        ("[catalog]\nuri = 'postgresql://u:s3cret@h/d'\n".to_owned(), "catalog.uri", "password"),
        ("[catalog]\nuri = 'postgresql://u@h/d?password=s3cret'\n".to_owned(), "catalog.uri", "password"),
        ("[catalog]\nuri = 'postgresql://u@h'\n".to_owned(), "catalog.uri", "no database"),
        ("[catalog]\nuri = 'postgresql://u:s3cret@h:port/d'\n".to_owned(), "catalog.uri", "no URI"),
        ("[catalog]\ntype = 'rest'\n".to_owned(), "catalog.uri", "no http or https URL"),
        ("[catalog]\ntype = 'rest'\nuri = 'https://u:s3cret@c'\n".to_owned(), "catalog.uri", "credentials"),
        ("[catalog]\ntype = 'rest'\nuri = 'https://c?k=s3cret'\n".to_owned(), "catalog.uri", "parameters"),
        (format!("{rest}token_env = 'PW'\ncredential_env = 'PW'\n"), "catalog.token", "either a token"),
        (format!("{rest}token_env = 'PW'\ntoken_file = 'x'\n"), "catalog.token_env", "either token_env"),
        (format!("{rest}token_env = 'EMPTY'\n"), "catalog.token", "is empty"),
        (format!("{rest}token_env = 'LINES'\n"), "catalog.token", "line break"),
        (format!("{rest}credential_env = 'NOPE'\n"), "catalog.credential_env", "`NOPE` is not set"),
        (format!("{rest}credential_file = 'nope'\n"), "catalog.credential_file", "/etc/x/nope"),
        (format!("{rest}password_env = 'PW'\n"), "catalog.password", "postgresql"),
        ("[catalog]\ntoken_env = 'PW'\n".to_owned(), "catalog.token", "rest"),
        ("[catalog]\ncredential_env = 'PW'\n".to_owned(), "catalog.credential", "rest"),
        ("[catalog]\npassword_env = 'PW'\n".to_owned(), "catalog.password", "postgresql"),
        ("[catalog]\nheader_env = { x = 'PW' }\n".to_owned(), "catalog.header_env", "rest"),
        ("[catalog.properties]\nscope = 's3cret'\n".to_owned(), "catalog.properties.\"scope\"", "rest"),
        ("[catalog.properties]\n'header.x' = 's3cret'\n".to_owned(), "\"header.x\"", "rest"),
        (format!("{rest}header_env = {{ x = 's3cret' }}\n"), "catalog.header_env.x", "not set"),
        (format!("{rest}header_env = {{ x = 'LINES' }}\n"), "header `x`", "cannot be sent"),
        (format!("{rest}header_env = {{ 'x y' = 'PW' }}\n"), "header `x y`", "cannot be sent"),
        (format!("{rest}header_env = {{ X = 'PW' }}\nproperties = {{ 'header.x' = 'a' }}\n"), "`X`", "twice"),
        (of("'header.Authorization' = 's3cret'"), "\"header.Authorization\"", "header_env"),
        (of("token = 's3cret'"), "catalog.properties.\"token\"", "token_file"),
        (of("credential = 's3cret'"), "catalog.properties.\"credential\"", "credential_env"),
        (of("'s3.secret-access-key' = 's3cret'"), "\"s3.secret-access-key\"", "AWS_ACCESS_KEY_ID"),
        (of("'adls.account-key' = 's3cret'"), "\"adls.account-key\"", "is a secret"),
        (of("'s3.acl' = 's3cret'"), "\"s3.acl\"", "unknown, known are prefix"),
        (of("'s3.endpoint' = 'https://k:s3cret@h'"), "\"s3.endpoint\"", "credentials"),
        (of("'s3.endpoint' = 's3cret'"), "\"s3.endpoint\"", "no http or https URL"),
        (of("'s3.path-style-access' = 's3cret'"), "\"s3.path-style-access\"", "neither"),
        (of("'s3.sse.type' = 'custom'"), "\"s3.sse.type\"", "none of none"),
        (of("'s3.sse.type' = 'kms'"), "\"s3.sse.key\"", "is missing"),
        (of("'s3.sse.key' = 'k'"), "\"s3.sse.key\"", "only"),
        (of("'s3.region' = ''"), "\"s3.region\"", "is empty"),
        ("[catalog]\nwarehouse = 'hdfs://s3cret/'\n".to_owned(), "catalog.warehouse", "s3://"),
        ("[catalog]\nwarehouse = 's3://k:s3cret@b'\n".to_owned(), "catalog.warehouse", "credentials"),
        ("[catalog]\nwarehouse = 's3:///p'\n".to_owned(), "catalog.warehouse", "no bucket"),
        ("[catalog]\nwarehouse = 'file://p'\n".to_owned(), "catalog.warehouse", "three slashes"),
        ("[catalog]\ntimeout = '0s'\n".to_owned(), "catalog.timeout", "too short"),
        ("[state]\nuri = 'redis://u:s3cret@h'\n".to_owned(), "state.uri", "neither postgresql"),
        ("[state]\nuri = 'http://u:s3cret@h/d'\n".to_owned(), "state.uri", "password"),
        ("[state]\nuri = 'http://u@h/'\n".to_owned(), "state.uri", "no database"),
        ("[state]\nuri = 'http://u@h/d'\nca_file = 'x'\n".to_owned(), "state.ca_file", "https"),
        ("[state]\npassword_env = 'PW'\n".to_owned(), "state.uri", "is missing"),
        ("[clickhouse]\nca_file = 'x'\n".to_owned(), "clickhouse.ca_file", "https"),
    ] {
        let parsed = Config::parse(&format!("{text}{MINIMAL}"), Path::new("/etc/x"), environment);
        let error = parsed.expect_err(&text).to_string();
        assert!(error.contains(key) && error.contains(reason), "{key}, {reason} in: {error}\n{text}");
        assert!(!error.contains("s3cret") && !error.contains("; "), "one problem, no secret: {error}\n{text}");
    }
}

#[test]
fn the_shipped_file_names_every_property() {
    let shipped = include_str!("../../../offload.toml");
    for key in known() {
        assert!(shipped.contains(key), "{key}");
    }
}
