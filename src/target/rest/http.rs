//! Requests and their answers. Owns the connections, and that no secret leaves by an error.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use reqwest::header::{DATE, ETAG, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};

use super::errors::{MAX_WAIT, Patience, Told, retry_after};
use crate::config::{Auth, Rest as Config, Secret, hide};
use crate::error::{Classify, Context, Error, Kind, Result, causes};
use crate::tls;

/// Connections that were idle for longer are not used again: servers close theirs, and a request on a closed one is lost, which for a commit
/// means that nobody knows.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// The connections to a catalog.
pub struct Transport {
    client: Client,
    timeout: Duration,
    /// What must not show in an error.
    secrets: Vec<Secret>,
}

/// What a server answered, whatever the status.
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
    /// What the body says, for a status that is no success.
    pub told: Told,
    pub etag: Option<String>,
    /// The server's clock.
    pub date: Option<String>,
    retry_after: Option<Duration>,
}

/// A request without a whole answer.
#[derive(Debug)]
pub enum Unanswered {
    /// It did not leave this host: nothing was done.
    NotSent(Error),
    /// Nobody knows whether it arrived.
    Lost(Error),
}

impl Unanswered {
    /// The error, for a request that changes nothing.
    pub fn error(self) -> Error {
        let (Self::NotSent(error) | Self::Lost(error)) = self;
        error
    }
}

impl Transport {
    pub fn new(config: &Config) -> Result<Self> {
        let tls = tls::client_config(config.ca_file.as_deref()).context_with(|| "catalog.ca_file")?;
        let client = Client::builder()
            .use_preconfigured_tls(tls)
            // Who goes where he is sent to takes credentials there.
            .redirect(Policy::none())
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .pool_idle_timeout(IDLE_CONNECTION)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .build()
            .or_error(Kind::Internal, "set up HTTP")?;
        let of_auth = match &config.auth {
            Auth::None => None,
            Auth::Token(secret) | Auth::Client(_, secret) => Some(secret),
        };
        let secrets = config.headers.values().chain(of_auth).cloned().collect();
        Ok(Self { client, timeout: config.timeout, secrets })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request, and again after a while where the server is too busy for it. `bearer` is the token in it.
    pub async fn ask(
        &self,
        request: impl Fn() -> RequestBuilder,
        bearer: Option<&str>,
        is_change: bool,
    ) -> Result<Answer, Unanswered> {
        let mut patience = Patience::default();
        loop {
            let answer = self.exchange(request(), bearer).await?;
            match patience.pause(answer.status, answer.retry_after, is_change) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Ok(answer),
            }
        }
    }

    async fn exchange(&self, request: RequestBuilder, bearer: Option<&str>) -> Result<Answer, Unanswered> {
        let failed = |error| unanswered(error, self.timeout);
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let header = |headers: &HeaderMap, name: HeaderName| headers.get(name)?.to_str().ok().map(str::to_owned);
        let (etag, date) = (header(response.headers(), ETAG), header(response.headers(), DATE));
        let retry_after = header(response.headers(), RETRY_AFTER).and_then(|value| retry_after(&value, Utc::now()));
        let body = response.bytes().await.map_err(failed)?;
        let told =
            if status.is_success() { Told::default() } else { Told::read(&body, |text| self.hide(text, bearer)) };
        Ok(Answer { status: status.as_u16(), body, told, etag, date, retry_after })
    }

    /// The text without what must not show.
    fn hide(&self, text: &str, bearer: Option<&str>) -> String {
        hide(text, self.secrets.iter().map(Secret::expose).chain(bearer))
    }
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..=299).contains(&self.status)
    }

    /// How long the server asks to leave it alone, if that is not too long to wait for.
    pub fn pause(&self) -> Duration {
        self.retry_after.filter(|asked| *asked <= MAX_WAIT).unwrap_or_default()
    }

    /// What the answer says, for an error; `who` answers.
    pub fn text(&self, who: &str) -> String {
        let Told { kind, message } = &self.told;
        let mut text = format!("{who} answers {}", self.status);
        if !kind.is_empty() {
            text.push_str(&format!(" ({kind})"));
        }
        if !message.is_empty() {
            text.push_str(&format!(": {message}"));
        }
        if let Some(pause) = self.retry_after.filter(|pause| !pause.is_zero()) {
            text.push_str(&format!("; it asks to wait {} s", pause.as_secs()));
        }
        text
    }
}

/// Sorts what came instead of an answer. A URL never shows: its query could hold a secret.
fn unanswered(error: reqwest::Error, timeout: Duration) -> Unanswered {
    let error = error.without_url();
    let not_sent = error.is_connect() || error.is_builder();
    let error = if let Some(hint) = of_tls(&error) {
        Error::from_cause(Kind::Config, error).hint(hint)
    } else if error.is_builder() {
        Error::from_cause(Kind::Config, error)
    } else if error.is_timeout() && !error.is_connect() {
        Error::new(Kind::Unavailable, format!("no answer in {} s", timeout.as_secs()))
    } else {
        Error::from_cause(Kind::Unavailable, error)
    };
    if not_sent { Unanswered::NotSent(error) } else { Unanswered::Lost(error) }
}

/// What to do where TLS cannot begin, which stays so until a person acts.
fn of_tls(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    match causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())? {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. },
        ) => Some(
            "the server's certificate, or one of its CAs, has expired: renew it there, and a CA's in catalog.ca_file; or this host's clock is wrong",
        ),
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        ) => Some("the server's certificate is for another host: catalog.uri must name one of its subjectAltName"),
        rustls::Error::InvalidCertificate(_) => {
            Some("let catalog.ca_file name the certificate of the authority that signed the server's")
        }
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            Some("what listens there does not speak TLS: see the port, and whether catalog.uri must begin with http://")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_pause_that_is_too_long_is_none() {
        let answer = |seconds: Option<u64>| Answer {
            status: 503,
            body: Bytes::new(),
            told: Told::default(),
            etag: None,
            date: None,
            retry_after: seconds.map(Duration::from_secs),
        };
        let pauses = [None, Some(7), Some(30), Some(31)].map(|seconds| answer(seconds).pause().as_secs());
        assert_eq!(pauses, [0, 7, 30, 0]);
    }

    /// hyper-rustls wraps the I/O error of tokio-rustls in another one.
    #[test]
    fn a_certificate_is_found_under_errors_of_io() {
        let of = |error| io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        let unknown = of_tls(&of(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)));
        assert!(unknown.is_some_and(|hint| hint.contains("catalog.ca_file")));
        assert_eq!(of_tls(&of(rustls::Error::DecryptError)), None);
        assert_eq!(of_tls(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
