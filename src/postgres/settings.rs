//! How a session is made: what the URI says, and TLS.
//!
//! `sslmode` as libpq has it, with three differences. `require` and better all verify the certificate and that it is for the host. Where a
//! certificate to trust is named and no mode is, the mode is `verify-full`. And `allow` is `prefer`, which, as there, encrypts
//! where the server can and verifies nothing.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::Postgres;
use crate::error::{Classify, Error, Kind, Result};
use crate::tls;

/// A peer that vanished is found out sooner than after the two hours that systems take.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
const DEFAULT_PORT: u16 = 5432;

/// What a session needs.
pub struct Settings {
    pub session: tokio_postgres::Config,
    /// `None` for none.
    pub tls: Option<MakeRustlsConnect>,
    /// The database, without user, password and parameters.
    pub name: String,
    pub has_password: bool,
    /// For all hosts.
    pub connect_timeout: Duration,
    pub timeout: Duration,
}

impl Settings {
    pub fn new(config: &Postgres, application: &str) -> Result<Self> {
        let Parts { uri, mode, root } = split(&config.url)?;
        let mut session = session(&uri)?;
        session
            .application_name(application)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(config.timeout.max(KEEPALIVE_IDLE));
        if session.get_connect_timeout().is_none() {
            // Of several addresses of a host, a second one gets its turn.
            session.connect_timeout(config.connect_timeout / 2);
        }
        let has_password = !config.password.expose().is_empty();
        if has_password {
            session.password(config.password.expose());
        }
        if session.get_hosts().len() > 1 && session.get_target_session_attrs() == TargetSessionAttrs::Any {
            // Of several, the one that takes changes.
            session.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let roots: Vec<&Path> = config.ca_file.as_deref().into_iter().chain(root.as_deref()).collect();
        let mode = mode.unwrap_or(if roots.is_empty() { Mode::Prefer } else { Mode::Verify });
        session.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Verify => SslMode::Require,
        });
        let tls = match mode {
            Mode::Disable => None,
            Mode::Prefer => Some(unverified()?),
            Mode::Verify => Some(tls::client_config(roots)?),
        };
        let hosts = u32::try_from(session.get_hosts().len()).unwrap_or(1).max(1);
        Ok(Self {
            name: name(&session),
            session,
            tls: tls.map(MakeRustlsConnect::new),
            has_password,
            connect_timeout: config.connect_timeout.saturating_mul(hosts),
            timeout: config.timeout,
        })
    }
}

/// What a URI says of a session, but for TLS; errors repeat no value of it.
pub fn parse(uri: &str) -> Result<tokio_postgres::Config> {
    session(&split(uri)?.uri)
}

fn session(uri: &str) -> Result<tokio_postgres::Config> {
    let parsed = tokio_postgres::Config::from_str(uri).or_error(Kind::Config, "read the postgresql:// URI");
    parsed.map_err(|e| e.hint("see host, port, database and the parameters after `?`"))
}

/// Whether a server must prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Verify,
}

/// A URI, without the parameters that `tokio_postgres` does not know, and what they say.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    uri: String,
    mode: Option<Mode>,
    root: Option<PathBuf>,
}

fn split(uri: &str) -> Result<Parts> {
    let (base, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut parts = Parts { uri: String::new(), mode: None, root: None };
    let mut kept = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("sslmode", value) => parts.mode = Some(mode(value)?),
            // The system's are trusted anyway.
            ("sslrootcert", "system") => parts.mode = parts.mode.or(Some(Mode::Verify)),
            ("sslrootcert", value) => parts.root = Some(PathBuf::from(decoded(value))),
            _ => kept.push(parameter),
        }
    }
    let separator = if kept.is_empty() { "" } else { "?" };
    parts.uri = format!("{base}{separator}{}", kept.join("&"));
    Ok(parts)
}

fn mode(value: &str) -> Result<Mode> {
    match value {
        "disable" => Ok(Mode::Disable),
        "allow" | "prefer" => Ok(Mode::Prefer),
        "require" | "verify-ca" | "verify-full" => Ok(Mode::Verify),
        _ => Err(Error::new(
            Kind::Config,
            "sslmode of the postgresql:// URI is none of disable, allow, prefer, require, verify-ca, verify-full",
        )),
    }
}

/// Percent-decoded; a plus sign is no space, as libpq has it.
fn decoded(value: &str) -> String {
    let form = format!("v={}", value.replace('+', "%2B"));
    url::form_urlencoded::parse(form.as_bytes()).map(|(_, value)| value.into_owned()).collect()
}

/// `postgresql://HOST:PORT/DATABASE`: the same on all hosts that mean the same database.
fn name(session: &tokio_postgres::Config) -> String {
    let ports = session.get_ports();
    let host = |(number, host): (usize, &Host)| {
        let port = ports.get(number).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
        match host {
            Host::Tcp(host) => format!("{}:{port}", host.to_lowercase()),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    };
    let hosts: Vec<String> = session.get_hosts().iter().enumerate().map(host).collect();
    let database = session.get_dbname().or(session.get_user()).unwrap_or_default();
    format!("postgresql://{}/{database}", hosts.join(","))
}

/// Encrypts, and believes every server.
fn unverified() -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().or_error(Kind::Internal, "set up TLS")?;
    let verifier = Arc::new(AnyServer(provider));
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes every certificate that its server has the key of.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Postgres {
        Postgres {
            url: url.into(),
            password: crate::config::Secret::default(),
            ca_file: None,
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_parameters_of_tls_are_ours() {
        let parts = |uri: &str| split(uri).unwrap();
        assert_eq!(
            parts("postgresql://u@h/d?sslmode=verify-full&application_name=x&sslrootcert=/a%20b+c"),
            Parts {
                uri: "postgresql://u@h/d?application_name=x".into(),
                mode: Some(Mode::Verify),
                root: Some("/a b+c".into())
            }
        );
        assert_eq!(parts("postgresql://h/d"), Parts { uri: "postgresql://h/d".into(), mode: None, root: None });
        assert_eq!(parts("postgresql://h/d?sslmode=disable").uri, "postgresql://h/d");
        assert_eq!(parts("postgresql://h/d?sslrootcert=system").mode, Some(Mode::Verify));
        assert_eq!(split("postgresql://h/d?sslmode=no").unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn a_mode_says_whether_a_server_must_prove_itself() {
        let mode = |url: &str| Settings::new(&config(url), "x").unwrap().session.get_ssl_mode();
        assert_eq!(mode("postgresql://h/d"), SslMode::Prefer);
        assert_eq!(mode("postgresql://h/d?sslmode=require"), SslMode::Require);
        assert_eq!(mode("postgresql://h/d?sslmode=verify-ca"), SslMode::Require);
        assert!(Settings::new(&config("postgresql://h/d?sslmode=disable"), "x").unwrap().tls.is_none());
    }

    #[test]
    fn the_name_of_a_database_is_the_same_for_all_hosts_and_users() {
        let name = |url: &str| Settings::new(&config(url), "x").unwrap().name;
        let wanted = "postgresql://db.example:5432/lake";
        assert_eq!(name("postgresql://DB.example/lake"), wanted);
        assert_eq!(name("postgres://some:one@db.example:5432/lake?sslmode=require&connect_timeout=3"), wanted);
        assert_eq!(name("postgresql://a,b:6000/lake?port=1,2"), "postgresql://a:5432,b:6000/lake");
    }

    #[test]
    fn what_cannot_be_read_does_not_show_itself() {
        let error = Settings::new(&config("postgresql://u@h/d?passfile=s3cret"), "x").err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("passfile") && !error.to_string().contains("s3cret"), "{error}");
    }
}
