//! What a REST catalog says of itself, and under which URLs it is asked: values. Sends nothing.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::config::{Secret, TableName};
use crate::storage::same_spelling;

/// Endpoints that we need, as `endpoints` of a server's configuration names them.
pub const LOAD_TABLE: &str = "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}";
pub const UPDATE_TABLE: &str = "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}";
pub const CREATE_TABLE: &str = "POST /v1/{prefix}/namespaces/{namespace}/tables";
pub const REGISTER_TABLE: &str = "POST /v1/{prefix}/namespaces/{namespace}/register";
pub const LIST_NAMESPACES: &str = "GET /v1/{prefix}/namespaces";

/// Prefix of properties that are headers.
const HEADER: &str = "header.";
/// What separates the levels of a namespace in a URL, where the server names nothing else.
const SEPARATOR: &str = "%1F";

/// A server's answer to `v1/config`.
#[derive(Default, Deserialize)]
pub struct Served {
    defaults: Option<HashMap<String, Value>>,
    overrides: Option<HashMap<String, Value>>,
    endpoints: Option<Vec<String>>,
    #[serde(rename = "idempotency-key-lifetime")]
    idempotency_key_lifetime: Option<String>,
}

impl Served {
    /// Reads it; `None` for what is no configuration.
    pub fn read(body: &[u8]) -> Option<Self> {
        let served: Self = serde_json::from_slice(body).ok()?;
        (served.defaults.is_some() || served.overrides.is_some()).then_some(served)
    }

    /// Where the server keeps what the client names as a warehouse.
    pub fn warehouse(&self) -> Option<&str> {
        self.overrides.as_ref()?.get("warehouse")?.as_str()
    }

    /// Whether the server has the endpoint; without a list it has those that the protocol began with, which are all of ours.
    pub fn offers(&self, endpoint: &str) -> bool {
        let plain = |text: &str| text.replacen("/{prefix}", "", 1);
        let listed = |endpoints: &Vec<String>| endpoints.iter().any(|listed| plain(listed) == plain(endpoint));
        self.endpoints.as_ref().filter(|endpoints| !endpoints.is_empty()).is_none_or(listed)
    }

    /// Whether mutations may carry a key that makes their repetition harmless.
    pub fn is_idempotent(&self) -> bool {
        self.idempotency_key_lifetime.is_some()
    }

    /// The server's defaults, what the client says, and over that the server's overrides. Where credentials go to, the client alone says,
    /// if it says so, and they do not leave https.
    pub fn merge(&self, ours: &HashMap<String, String>, url: &str) -> HashMap<String, String> {
        let text = |(key, value): (&String, &Value)| match value {
            Value::String(text) => Some((key_of(key), text.clone())),
            Value::Number(_) | Value::Bool(_) => Some((key_of(key), value.to_string())),
            _ => None,
        };
        let mut merged: HashMap<String, String> = self.defaults.iter().flatten().filter_map(text).collect();
        merged.extend(ours.clone());
        merged.extend(self.overrides.iter().flatten().filter_map(text));
        if let Some(server) = ours.get("oauth2-server-uri") {
            merged.insert("oauth2-server-uri".to_owned(), server.clone());
        }
        // A path has no scheme, and stays where the catalog is.
        let is_https = |url: &str| Url::parse(url).ok().map(|url| url.scheme() == "https");
        let leaves_https = |other: &String| is_https(url) == Some(true) && is_https(other) == Some(false);
        for key in ["uri", "oauth2-server-uri"] {
            if !ours.contains_key(key) && merged.get(key).is_some_and(leaves_https) {
                tracing::warn!(key, "the catalog names a URL without https, which is not followed");
                merged.remove(key);
            }
        }
        merged
    }
}

/// What the client says: its properties and its headers, the latter as Iceberg's properties have them.
pub fn ours(properties: &BTreeMap<String, String>, headers: &BTreeMap<String, Secret>) -> HashMap<String, String> {
    let headers = headers.iter().map(|(name, value)| (key_of(&format!("{HEADER}{name}")), value.expose().to_owned()));
    properties.clone().into_iter().chain(headers).collect()
}

/// The headers among properties.
pub fn headers(properties: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    properties.iter().filter_map(|(key, value)| Some((key.strip_prefix(HEADER)?, value.as_str())))
}

/// Names of headers differ by more than their case.
fn key_of(key: &str) -> String {
    if key.starts_with(HEADER) { key.to_ascii_lowercase() } else { key.to_owned() }
}

/// Whether a client that asked for one location was given another one.
pub fn is_other_location(asked: &str, served: &str) -> bool {
    let plain = |location: &str| same_spelling(location.trim_end_matches('/'));
    [asked, served].iter().all(|location| location.contains("://")) && plain(asked) != plain(served)
}

/// The URLs of a catalog.
pub struct Paths {
    base: String,
    separator: String,
}

impl Paths {
    /// Below the catalog's URL, or the one that its configuration names instead.
    pub fn new(url: &str, properties: &HashMap<String, String>) -> Self {
        let url = properties.get("uri").filter(|uri| uri.contains("://")).map_or(url, String::as_str);
        // A prefix is a piece of a path: servers give several segments, and encode it themselves.
        let prefix = properties.get("prefix").map_or("", |prefix| prefix.trim_matches('/'));
        let prefix = prefix.replace('?', "%3F").replace('#', "%23");
        let base = format!("{}/v1/{prefix}", url.trim_end_matches('/'));
        let separator = match properties.get("namespace-separator") {
            Some(given) if given.contains('%') => given.clone(),
            Some(given) if !given.is_empty() => encode(given),
            _ => SEPARATOR.to_owned(),
        };
        Self { base: base.trim_end_matches('/').to_owned(), separator }
    }

    pub fn namespaces(&self) -> String {
        format!("{}/namespaces", self.base)
    }

    pub fn tables(&self, name: &TableName) -> String {
        let levels: Vec<String> = levels(&name.namespace).into_iter().map(encode).collect();
        format!("{}/{}/tables", self.namespaces(), levels.join(&self.separator))
    }

    pub fn table(&self, name: &TableName) -> String {
        format!("{}/{}", self.tables(name), encode(&name.name))
    }

    pub fn register(&self, name: &TableName) -> String {
        let levels: Vec<String> = levels(&name.namespace).into_iter().map(encode).collect();
        format!("{}/{}/register", self.namespaces(), levels.join(&self.separator))
    }
}

/// Where the configuration is.
pub fn config_url(url: &str, warehouse: &str) -> String {
    let query = if warehouse.is_empty() { String::new() } else { format!("?warehouse={}", encode(warehouse)) };
    format!("{url}/v1/config{query}")
}

/// Where tokens are: a URL, or a path below the catalog's.
pub fn token_url(url: &str, given: Option<&str>) -> String {
    match given.unwrap_or("v1/oauth/tokens") {
        given if given.contains("://") => given.to_owned(),
        given => format!("{url}/{}", given.trim_start_matches('/')),
    }
}

/// Whether two URLs are of one server.
pub fn same_origin(one: &str, other: &str) -> bool {
    matches!((Url::parse(one), Url::parse(other)), (Ok(one), Ok(other)) if one.origin() == other.origin())
}

/// A URL for people: without its query, which could hold a secret.
pub fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// The levels of a dotted namespace.
pub fn levels(namespace: &str) -> Vec<&str> {
    namespace.split('.').collect()
}

/// Percent-encodes all but what RFC 3986 leaves unreserved, so that servers which read `+` as a space get what was meant.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_server_has_the_last_word_but_on_where_credentials_go() {
        let served = Served::read(
            br#"{"defaults": {"scope": "theirs", "audience": "a", "header.X-A": "theirs", "n": 1, "none": null},
                 "overrides": {"prefix": "p", "oauth2-server-uri": "https://evil/", "uri": "http://evil/"}}"#,
        )
        .unwrap();
        let ours =
            map(&[("scope", "ours"), ("prefix", "x"), ("oauth2-server-uri", "https://idp/"), ("header.x-a", "ours")]);
        let expected =
            map(&[("scope", "ours"), ("audience", "a"), ("prefix", "p"), ("oauth2-server-uri", "https://idp/")]);
        let mut merged = served.merge(&ours, "https://c");
        assert_eq!(merged.remove("header.x-a").as_deref(), Some("ours"));
        assert_eq!(merged.remove("n").as_deref(), Some("1"));
        assert_eq!(merged, expected);
        for (other, follows) in
            [("HTTP://evil", false), ("ftp://evil", false), ("HTTPS://idp", true), ("oauth/t", true)]
        {
            let body = json!({"overrides": {"oauth2-server-uri": other}}).to_string();
            let merged = Served::read(body.as_bytes()).unwrap().merge(&HashMap::new(), "HTTPS://c");
            assert_eq!(merged.contains_key("oauth2-server-uri"), follows, "{other}");
        }
        let merged = served.merge(&HashMap::new(), "http://c");
        assert_eq!(merged["oauth2-server-uri"], "https://evil/", "where the client names none");
        assert_eq!(merged["uri"], "http://evil/");
    }

    #[test]
    fn what_is_no_configuration_is_none() {
        for body in ["", "<html>", "[]", "{}", r#"{"error": {}}"#, r#"{"defaults": []}"#] {
            assert!(Served::read(body.as_bytes()).is_none(), "{body}");
        }
        assert!(Served::read(br#"{"overrides": {}}"#).is_some());
    }

    #[test]
    fn endpoints_are_those_of_the_list() {
        let served = |endpoints: Value| {
            let body = json!({"defaults": {}, "endpoints": endpoints}).to_string();
            Served::read(body.as_bytes()).unwrap()
        };
        assert!(served(Value::Null).offers(CREATE_TABLE) && served(json!([])).offers(CREATE_TABLE));
        assert!(served(json!([CREATE_TABLE])).offers(CREATE_TABLE));
        assert!(served(json!(["POST /v1/namespaces/{namespace}/tables"])).offers(CREATE_TABLE));
        assert!(!served(json!([LOAD_TABLE])).offers(UPDATE_TABLE));
    }

    #[test]
    fn locations_differ_by_more_than_their_spelling() {
        for (asked, served, is_other) in [
            ("s3://b/w", "s3://b/w/", false),
            ("s3a://b/w", "s3://b/w", false),
            ("s3://b/w", "s3://b/v", true),
            ("s3://b/w", "gs://b/w", true),
            ("main", "s3://b/w", false),
            ("s3://b/w", "4711", false),
            ("", "s3://b/w", false),
        ] {
            assert_eq!(is_other_location(asked, served), is_other, "{asked} {served}");
        }
    }

    #[test]
    fn urls_are_encoded_by_segment() {
        let name = TableName { namespace: "a.b c".to_owned(), name: "t/ü?".to_owned() };
        for (properties, expected) in [
            (map(&[]), "http://c/x/v1/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("prefix", "/p/q/")]), "http://c/x/v1/p/q/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("prefix", "arn%3Aaws?")]), "http://c/x/v1/arn%3Aaws%3F/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("namespace-separator", ".")]), "http://c/x/v1/namespaces/a.b%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("namespace-separator", "%2E")]), "http://c/x/v1/namespaces/a%2Eb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("uri", "https://d/")]), "https://d/v1/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
        ] {
            assert_eq!(Paths::new("http://c/x", &properties).table(&name), expected);
        }
        assert_eq!(config_url("http://c", ""), "http://c/v1/config");
        assert_eq!(config_url("http://c", "s3://b/w"), "http://c/v1/config?warehouse=s3%3A%2F%2Fb%2Fw");
        assert_eq!(token_url("http://c/x", Some("/oauth/t")), "http://c/x/oauth/t");
        assert_eq!(shown("http://c/x?token=s3cret"), "http://c/x");
        assert!(same_origin("https://c/x", "https://c:443/y") && !same_origin("https://c", "http://c"));
    }
}
