//! The way to a ClickHouse server: HTTP, or HTTPS with certificates of one's own, and what its first errors mean.

use std::time::Duration;

use clickhouse::Client;
use clickhouse::error::Error as ClientError;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};
use tokio::time::timeout;

use super::errors::classify;
use crate::config::{ClickHouse, Secret};
use crate::error::{Error, Kind, Result, causes};
use crate::tls;

/// Shorter than the 3 s after which older servers close a connection that is idle: a request must not meet one that just closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// Longest wait for a handshake that is only tried to tell better what is wrong.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the server of `[section]`, as its user in its database. It connects with the first query, whose error is for [`of_first_answer`].
pub fn http_client(config: &ClickHouse, section: &str) -> Result<Client> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(config.connect_timeout));
    // Queries are short and come one by one: waiting to fill packets costs 40 ms each.
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(POOL_IDLE_TIMEOUT);
    // The system's certificates take some milliseconds to load, which plain HTTP does not pay.
    let client = if is_https(config) {
        connector.enforce_http(false);
        let tls = tls::client_config(config.ca_file.as_deref()).map_err(|e| e.context(format!("{section}.ca_file")))?;
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        Client::with_http_client(builder.build(https.wrap_connector(connector)))
    } else {
        Client::with_http_client(builder.build(connector))
    };
    let client = client
        .with_url(&config.url)
        .with_user(&config.user)
        .with_database(&config.database)
        .with_product_info(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    Ok(match config.password.expose() {
        "" => client,
        password => client.with_password(password),
    })
}

fn is_https(config: &ClickHouse) -> bool {
    config.url.split_once(':').is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

/// An error that tells more, where plain HTTP found no answer because TLS is spoken there: such servers just hang up. No credentials are sent.
pub async fn wants_tls(config: &ClickHouse, section: &str) -> Option<Error> {
    if is_https(config) {
        return None;
    }
    let url = format!("https:{}", config.url.split_once(':')?.1);
    let probe = ClickHouse { url, user: String::new(), password: Secret::default(), ..config.clone() };
    let asked = http_client(&probe, section).ok()?.query_raw("SELECT 1").execute();
    let speaks_tls = match timeout(PROBE_TIMEOUT, asked).await.ok()? {
        Ok(()) | Err(ClientError::BadResponse(_)) => true,
        Err(error) => causes(&error).any(|cause| {
            cause.downcast_ref::<TlsError>().is_some_and(|error| !matches!(error, TlsError::InvalidMessage(_)))
        }),
    };
    let error = || Error::new(Kind::Config, "plain HTTP finds no answer");
    speaks_tls.then(|| error().hint("what listens there speaks TLS: the URL must begin with https://"))
}

/// Sorts the error of the first query: who does not speak our protocol, or is not who the configuration says, stays so until a person acts.
pub fn of_first_answer(error: ClientError, section: &str) -> Error {
    for cause in causes(&error) {
        let hint = match cause.downcast_ref::<TlsError>() {
            Some(error) => of_tls(error, section),
            // The first bytes of the answer are no HTTP.
            None => cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse).then(|| {
                "what listens there does not speak HTTP: see the port, and whether the URL must begin with https://"
                    .to_owned()
            }),
        };
        if let Some(hint) = hint {
            return Error::new(Kind::Config, cause).hint(hint);
        }
    }
    classify(error, &[])
}

/// What to do where TLS cannot begin; `None` where waiting may help.
fn of_tls(error: &TlsError, section: &str) -> Option<String> {
    use AlertDescription as Alert;
    let hint = match error {
        TlsError::InvalidCertificate(certificate) => return Some(of_certificate(certificate, section)),
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what listens there does not speak TLS: see the port, and whether the URL must begin with http://"
        }
        TlsError::PeerIncompatible(_)
        | TlsError::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity) => {
            "the server must offer TLS 1.2 or 1.3 with a cipher of today"
        }
        TlsError::AlertReceived(Alert::CertificateRequired) => {
            "the server asks for a client's certificate, which this version does not have"
        }
        TlsError::AlertReceived(Alert::UnrecognisedName) => "the server does not know the host of the URL",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn of_certificate(error: &CertificateError, section: &str) -> String {
    use CertificateError as E;
    match error {
        // The second: a CA of the same name and another key.
        E::UnknownIssuer | E::BadSignature => format!(
            "neither the system nor {section}.ca_file knows the CA of the server's certificate: name the CA's own certificate there, as PEM"
        ),
        E::NotValidForName | E::NotValidForNameContext { .. } => format!(
            "the server's certificate is for another host: the URL must name one of its subjectAltName; {section}.ca_file is not to blame"
        ),
        E::Expired | E::ExpiredContext { .. } => format!(
            "the server's certificate, or one of its CAs, has expired: renew it on the server, and a CA's in {section}.ca_file; or this host's clock is wrong"
        ),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: see this host's clock".to_owned()
        }
        _ => format!(
            "the server needs a certificate for servers that a CA signed, with its host as subjectAltName, and the CA's own stands in {section}.ca_file"
        ),
    }
}
