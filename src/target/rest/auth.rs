//! Who we are for the catalog: nobody, the holder of a token, or an OAuth2 client that fetches its tokens.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::sync::Mutex;

use super::errors::{hint, kind};
use super::http::Transport;
use super::served::{same_origin, token_url};
use crate::config::Auth;
use crate::error::{Context, Error, Kind, Result};

/// Longest time before its end from which a token is not used any more; of short-lived ones a tenth of their life.
const MAX_MARGIN: Duration = Duration::from_secs(30);

/// Fetches and keeps tokens.
pub struct Session {
    who: Auth,
    /// Where tokens are fetched, and with which further fields of the form.
    grant: Grant,
    /// Locked while a token is fetched, so that tables side by side fetch one.
    held: Mutex<Option<Held>>,
}

struct Grant {
    url: String,
    /// Whether the server that gives tokens is the catalog itself, which gets the catalog's headers.
    is_catalog: bool,
    fields: Vec<(&'static str, String)>,
}

struct Held {
    token: String,
    until: Option<Instant>,
}

impl Session {
    /// With the catalog's URL and Iceberg's properties.
    pub fn new(who: &Auth, url: &str, properties: &HashMap<String, String>) -> Self {
        Self { who: who.clone(), grant: grant(url, properties), held: Mutex::new(None) }
    }

    /// From now on with what the catalog's configuration said.
    pub fn learn(&mut self, url: &str, properties: &HashMap<String, String>) {
        self.grant = grant(url, properties);
    }

    pub fn who(&self) -> &Auth {
        &self.who
    }

    /// The token to send, fetched where the last one is about to end; `headers` go to the catalog only.
    pub async fn bearer(&self, transport: &Transport, headers: &HeaderMap) -> Result<Option<String>> {
        let (id, secret) = match &self.who {
            Auth::None => return Ok(None),
            Auth::Token(token) => return Ok(Some(token.expose().to_owned())),
            Auth::Client(id, secret) => (id.as_deref(), secret.expose()),
        };
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.until.is_none_or(|until| Instant::now() < until)) {
            return Ok(Some(held.token.clone()));
        }
        let fetched = self.fetch(transport, headers, id, secret).await.context_with(|| "fetch a token")?;
        let token = fetched.token.clone();
        *held = Some(fetched);
        Ok(Some(token))
    }

    /// Forgets a token that was refused; `false` where there is no other to be had.
    pub async fn forget(&self, refused: &str) -> bool {
        let mut held = self.held.lock().await;
        // Somebody else may have fetched another one meanwhile.
        if held.as_ref().is_some_and(|held| held.token == refused) {
            *held = None;
        }
        matches!(self.who, Auth::Client(..))
    }

    async fn fetch(&self, transport: &Transport, headers: &HeaderMap, id: Option<&str>, secret: &str) -> Result<Held> {
        let Grant { url, is_catalog, fields } = &self.grant;
        let mut form = vec![("grant_type", "client_credentials"), ("client_secret", secret)];
        form.extend(id.map(|id| ("client_id", id)));
        form.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
        let request = || {
            let request = transport.client().post(url).form(&form);
            if *is_catalog { request.headers(headers.clone()) } else { request }
        };
        let asked = Instant::now();
        let answer = transport.ask(request, None, false).await.map_err(|unanswered| unanswered.error())?;
        if !answer.is_success() {
            return Err(refused(answer.status, &answer.told.kind, &answer.text("the token server"), &self.who));
        }
        // The text of the answer, and so of an error about it, holds the token.
        let (token, lifetime) = token(&answer.body)
            .ok_or_else(|| Error::new(Kind::Config, "the token server answers without a token").hint(NO_SERVER))?;
        let until = lifetime.and_then(|lifetime| asked.checked_add(usable(lifetime)));
        Ok(Held { token, until })
    }
}

const NO_SERVER: &str = "correct catalog.uri, or \"oauth2-server-uri\" in catalog.properties";

fn grant(url: &str, properties: &HashMap<String, String>) -> Grant {
    let get = |name: &str| properties.get(name).cloned();
    let fields = [
        ("scope", Some(get("scope").unwrap_or_else(|| "catalog".to_owned()))),
        ("audience", get("audience")),
        ("resource", get("resource")),
    ];
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let fields = fields.filter(|(_, value)| !value.is_empty()).collect();
    let token_url = token_url(url, properties.get("oauth2-server-uri").map(String::as_str));
    Grant { is_catalog: same_origin(url, &token_url), url: token_url, fields }
}

/// An answer of the token server that brings no token: wrong credentials come as 400 or 401 (RFC 6749, 5.2).
fn refused(status: u16, told: &str, text: &str, who: &Auth) -> Error {
    let passing = matches!(told, "temporarily_unavailable" | "server_error");
    match status {
        404 | 405 => Error::new(Kind::Config, text).hint(NO_SERVER),
        400..=499 if !passing && kind(status) != Kind::Unavailable => {
            Error::new(Kind::Config, text).hint(hint(401, who).unwrap_or_default())
        }
        300..=399 => Error::new(Kind::Config, text).hint(NO_SERVER),
        _ => Error::new(Kind::Unavailable, text),
    }
}

/// The token and its lifetime.
fn token(body: &[u8]) -> Option<(String, Option<Duration>)> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let token = body["access_token"].as_str().filter(|token| !token.is_empty())?;
    let seconds = body["expires_in"].as_u64().or_else(|| body["expires_in"].as_str()?.parse().ok());
    Some((token.to_owned(), seconds.map(Duration::from_secs)))
}

/// How long of its life a token is used.
fn usable(lifetime: Duration) -> Duration {
    lifetime - MAX_MARGIN.min(lifetime / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_end() {
        let seconds = |lifetime| usable(Duration::from_secs(lifetime)).as_secs();
        assert_eq!([0, 10, 60, 300, 3600].map(seconds), [0, 9, 54, 270, 3570]);
    }

    #[test]
    fn a_token_comes_with_or_without_its_lifetime() {
        let read = |body: &str| token(body.as_bytes());
        let lifetime = Some(Duration::from_secs(60));
        assert_eq!(read(r#"{"access_token": "t", "expires_in": 60}"#), Some(("t".to_owned(), lifetime)));
        assert_eq!(read(r#"{"access_token": "t", "expires_in": "60"}"#), Some(("t".to_owned(), lifetime)));
        assert_eq!(read(r#"{"access_token": "t"}"#), Some(("t".to_owned(), None)));
        assert_eq!(read(r#"{"access_token": ""}"#), None);
        assert_eq!(read("<html>"), None);
    }

    #[test]
    fn the_form_says_what_was_configured() {
        let properties = [("scope", "a b"), ("audience", "x"), ("oauth2-server-uri", "https://idp/token")];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let given = grant("https://c/api", &properties);
        assert_eq!(given.fields, [("scope", "a b".to_owned()), ("audience", "x".to_owned())]);
        assert!(!given.is_catalog && given.url == "https://idp/token");
        let default = grant("https://c/api", &HashMap::new());
        assert_eq!(default.fields, [("scope", "catalog".to_owned())]);
        assert!(default.is_catalog && default.url == "https://c/api/v1/oauth/tokens");
    }
}
