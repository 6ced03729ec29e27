//! `[catalog]` `properties` and `header_env`: Iceberg's names for what REST clients and storage are told. No key that nobody reads, and no secrets.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::Secret;
use crate::config::raw::RawCatalog;
use crate::config::validate::Problems;

/// Properties of REST clients that may stand in `catalog.properties`.
const OF_REST: [&str; 5] = ["prefix", "scope", "audience", "resource", "oauth2-server-uri"];
/// Prefix of properties that are headers.
const HEADER: &str = "header.";
/// Properties of storage that may stand there.
const OF_STORAGE: [&str; 14] = [
    "client.region",
    "s3.endpoint",
    "s3.region",
    "s3.path-style-access",
    "s3.checksum-enabled",
    "s3.credentials-file",
    "s3.profile-name",
    "s3.sse.type",
    "s3.sse.key",
    "gcs.service.host",
    "gcs.no-auth",
    "gcs.credentials-file",
    "adls.account-name",
    "adls.endpoint",
];
/// Those of them that name a file.
pub const FILES: [&str; 2] = ["s3.credentials-file", "gcs.credentials-file"];
/// Secrets, which others keep among their properties.
const SECRETS: [&str; 8] = [
    "s3.access-key-id",
    "s3.secret-access-key",
    "s3.session-token",
    "gcs.oauth2.token",
    "adls.account-key",
    "adls.client-secret",
    "adls.connection-string",
    "adls.sas-token",
];
/// Headers that are secrets, in lower case.
const SECRET_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Those for REST clients.
pub fn of_rest(raw: &RawCatalog) -> BTreeMap<String, String> {
    only(&raw.properties, |key| OF_REST.contains(&key))
}

/// Those for storage.
pub fn of_storage(raw: &RawCatalog, folder: &Path) -> BTreeMap<String, String> {
    located(only(&raw.properties, |key| OF_STORAGE.contains(&key)), folder)
}

/// Checks a URL that others see, without repeating it.
pub fn check_url(key: &str, text: &str, problems: &mut Problems) {
    problems.http_url(key, text);
    let url = url::Url::parse(text);
    if url.is_ok_and(|url| !url.username().is_empty() || url.password().is_some() || url.query().is_some()) {
        problems.add(key, "credentials and parameters do not belong into the URL");
    }
}

/// Properties whose files are absolute.
pub fn located(mut properties: BTreeMap<String, String>, folder: &Path) -> BTreeMap<String, String> {
    for key in FILES {
        if let Some(file) = properties.get_mut(key) {
            *file = folder.join(&file).display().to_string();
        }
    }
    properties
}

fn only(properties: &BTreeMap<String, String>, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let wanted = properties.iter().filter(|(key, _)| wanted(key));
    wanted.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Refuses keys that nobody reads, and secrets.
pub fn check(raw: &RawCatalog, problems: &mut Problems) {
    for (key, value) in &raw.properties {
        let at = format!("catalog.properties.\"{key}\"");
        match key.as_str() {
            "token" | "credential" => problems.add(&at, format_args!("is a secret: use {key}_env or {key}_file")),
            key if SECRETS.contains(&key) && key.starts_with("s3.") => problems.add(
                &at,
                "is a secret: use AWS_ACCESS_KEY_ID and its like, or a file that \"s3.credentials-file\" names",
            ),
            key if SECRETS.contains(&key) => problems.add(&at, "is a secret, which does not belong into this file"),
            key if key.strip_prefix(HEADER).is_some_and(|name| SECRET_HEADERS.contains(&&*name.to_lowercase())) => {
                problems.add(&at, "is a secret: use catalog.header_env");
            }
            key if raw.kind != "rest" && (key.starts_with(HEADER) || OF_REST.contains(&key)) => {
                problems.add(&at, "is for type = \"rest\" only");
            }
            "s3.path-style-access" | "s3.checksum-enabled" | "gcs.no-auth"
                if !matches!(value.as_str(), "true" | "false") =>
            {
                problems.add(&at, "is neither \"true\" nor \"false\"");
            }
            "s3.sse.type" if !matches!(value.as_str(), "none" | "s3" | "kms" | "dsse-kms") => {
                problems.add(&at, "is none of none, s3, kms, dsse-kms, the encryptions that every reader can undo");
            }
            "s3.endpoint" | "oauth2-server-uri" | "gcs.service.host" | "adls.endpoint" => {
                check_url(&at, value, problems);
            }
            key if key.starts_with(HEADER) || OF_REST.contains(&key) || OF_STORAGE.contains(&key) => {
                // An empty header is one that is not to be sent, whatever its default.
                if value.is_empty() && !key.starts_with(HEADER) {
                    problems.add(&at, "is empty");
                }
            }
            _ => problems.add(&at, format_args!("is unknown, known are {}", known().join(", "))),
        }
    }
    let is_kms = raw.properties.get("s3.sse.type").is_some_and(|kind| kind.ends_with("kms"));
    if is_kms != raw.properties.contains_key("s3.sse.key") {
        let reason = match is_kms {
            true => "is missing: the id of the key for s3.sse.type = \"kms\"",
            false => "is for s3.sse.type = \"kms\" and \"dsse-kms\" only",
        };
        problems.add("catalog.properties.\"s3.sse.key\"", reason);
    }
    if raw.kind != "rest" && !raw.header_env.is_empty() {
        problems.add("catalog.header_env", "is for type = \"rest\" only");
    }
}

/// All that may stand there.
pub fn known() -> Vec<&'static str> {
    OF_REST.into_iter().chain(["header.NAME"]).chain(OF_STORAGE).collect()
}

/// The headers of each request to a REST catalog, by name in lower case.
pub fn headers(
    raw: &RawCatalog,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> BTreeMap<String, Secret> {
    let plain = raw.properties.iter().filter_map(|(key, value)| Some((key.strip_prefix(HEADER)?, value.clone())));
    let mut all: Vec<(&str, String)> = plain.collect();
    for (name, variable) in &raw.header_env {
        match environment(variable) {
            Some(value) => all.push((name, value)),
            None => problems.add(&format!("catalog.header_env.{name}"), "the variable that it names is not set"),
        }
    }
    let mut headers = BTreeMap::new();
    for (name, value) in all {
        let key = format!("catalog header `{name}`");
        let is_name = name.parse::<reqwest::header::HeaderName>().is_ok();
        if !is_name || value.parse::<reqwest::header::HeaderValue>().is_err() {
            problems.add(&key, "cannot be sent: it holds what no header may hold");
        }
        if headers.insert(name.to_lowercase(), Secret::new(value)).is_some() {
            problems.add(&key, "stands twice");
        }
    }
    headers
}
