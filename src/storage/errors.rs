//! What an error of an object store means, by its type and the code in the answer, and what to do about it.
//!
//! Messages are made here: those of the client quote requests, and with them signatures that are as good as a password for a while.

use std::error::Error as StdError;
use std::path::Path;
use std::{fmt, io, iter};

use object_store::client::{HttpError, HttpErrorKind};
use rustls::InvalidMessage;

use super::local::file_error;
use crate::config::Secret;
use crate::error::{Error, Kind};

/// Shorter values are not looked for in messages: they would hit words.
const MIN_SECRET_BYTES: usize = 4;
/// Characters of a store's message that are shown.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a file could not be read.
#[derive(Debug)]
pub enum Missing {
    /// There is no such file.
    Gone(String),
    /// Nobody could tell, or it cannot be read.
    Failed(Error),
}

impl Missing {
    pub(super) fn of_file(verb: &str, path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Gone(path.display().to_string()),
            _ => Self::Failed(file_error(verb, path, error)),
        }
    }
}

/// How we got into a bucket, and what must not show in an error.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Whether credentials that expired are others the next time: those of a catalog, or of an instance's role.
    pub is_renewed: bool,
    /// Shown nowhere.
    pub secrets: Vec<Secret>,
}

impl Access {
    /// Sorts an error of the store.
    pub(super) fn failed(&self, verb: &str, location: &str, error: object_store::Error) -> Error {
        let code = code(&error);
        let (kind, what, hint) = judge(code.as_deref(), &error, self.is_renewed);
        let told = match (&code, message(&error)) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.clone(),
            (None, _) => what,
        };
        let told = hide(&told, self.secrets.iter());
        Error::new(kind, told).context(format!("{verb} {location}")).hint(hint)
    }

    /// The same where a file that is not there is an answer.
    pub(super) fn missing(&self, verb: &str, location: &str, error: object_store::Error) -> Missing {
        match error {
            object_store::Error::NotFound { .. } if !code(&error).is_some_and(|code| is_of_bucket(&code)) => {
                Missing::Gone(location.to_owned())
            }
            error => Missing::Failed(self.failed(verb, location, error)),
        }
    }
}

/// No credentials were found where those of a role or a web identity are.
#[derive(Debug)]
pub(super) struct NoCredentials {
    /// Whether the environment says that they are there.
    pub is_expected: bool,
    pub cause: object_store::Error,
}

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no credentials were found")
    }
}

impl StdError for NoCredentials {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}

impl From<Error> for Missing {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Gone(location) => Error::refused(format!("read {location}: no such file")),
            Missing::Failed(error) => error,
        }
    }
}

/// Codes that say that the bucket, not a file in it, is not there.
fn is_of_bucket(code: &str) -> bool {
    matches!(
        code,
        "NoSuchBucket" | "ContainerNotFound" | "FilesystemNotFound" | "AccountNotFound" | "ResourceTypeMismatch"
    )
}

const NEXT_PASS: &str = Kind::Unavailable.policy().hint;
const CREDENTIALS: &str = "correct the credentials: what the catalog lends, AWS_ACCESS_KEY_ID and its like, or the file that \"s3.credentials-file\" names";
const RIGHTS: &str = "these credentials may not do this: let them get, put, list and delete objects and abort uploads there; `k2-offload config check` prints what a bucket's policy must allow";
const REGION: &str = "the bucket is in another region: set \"s3.region\" in catalog.properties";
const UNSUPPORTED: &str = "the store does not do what it was asked for: see \"s3.sse.type\", \"s3.sse.key\", \"s3.checksum-enabled\" and \"s3.path-style-access\" in catalog.properties";

/// Kind, what happened where the store gave no code, and hint.
fn judge(code: Option<&str>, error: &object_store::Error, is_renewed: bool) -> (Kind, String, &'static str) {
    use object_store::Error as E;
    if let Some(missing) = causes(error).find_map(|cause| cause.downcast_ref::<NoCredentials>()) {
        return of_credentials(missing, error);
    }
    let (kind, what, hint) = match (code, error) {
        (Some(code), _) if is_of_bucket(code) => (Kind::Config, "", "correct catalog.warehouse, or create the bucket"),
        (Some(code), _) => {
            let (kind, hint) = of_code(code, is_renewed).unwrap_or(match error {
                E::PermissionDenied { .. } => (Kind::Config, RIGHTS),
                E::Unauthenticated { .. } => (Kind::Config, CREDENTIALS),
                _ => (Kind::Unavailable, NEXT_PASS),
            });
            (kind, "", hint)
        }
        (_, E::PermissionDenied { .. }) => (Kind::Config, "the store answers 403", RIGHTS),
        (_, E::Unauthenticated { .. }) => (Kind::Config, "the store answers 401", CREDENTIALS),
        (_, E::NotFound { .. }) => (Kind::Unavailable, "there is no such file", NEXT_PASS),
        (_, E::InvalidPath { .. }) => {
            (Kind::Refused, "the store takes no such name", "rename the column, or its value")
        }
        (_, E::UnknownConfigurationKey { .. }) => {
            (Kind::Config, "the client was set up wrong", "correct catalog.properties and the environment")
        }
        _ if let Some(refused) = tls(error) => refused,
        _ => match (transport(error), status(error)) {
            (Some(HttpErrorKind::Connect), _) => (
                Kind::Unavailable,
                "cannot connect to the store",
                "see whether the store is up and \"s3.endpoint\" right; the next pass tries again",
            ),
            (Some(HttpErrorKind::Timeout), _) => (
                Kind::Unavailable,
                "the store did not answer in time",
                "catalog.timeout is the limit; the next pass tries again",
            ),
            (Some(_), _) => (Kind::Unavailable, "the connection was cut", NEXT_PASS),
            (None, Some(status)) => return (Kind::Unavailable, format!("the store answers {status}"), NEXT_PASS),
            (None, None) => (Kind::Unavailable, "the store failed", NEXT_PASS),
        },
    };
    (kind, what.to_owned(), hint)
}

/// What a code says by itself, whatever the status with it.
fn of_code(code: &str, is_renewed: bool) -> Option<(Kind, &'static str)> {
    Some(match code {
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => (Kind::Config, REGION),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" if is_renewed => {
            (Kind::Unavailable, "the credentials have expired, and new ones are fetched for the next pass")
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => (
            Kind::Config,
            "the credentials have expired: renew AWS_SESSION_TOKEN and the keys with it, or the profile that holds them",
        ),
        "RequestTimeTooSkewed" => (Kind::Config, "set the clock of this host"),
        "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "AuthenticationFailed"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation" => (Kind::Config, CREDENTIALS),
        "AccessDenied"
        | "AllAccessDisabled"
        | "AuthorizationPermissionMismatch"
        | "AuthorizationFailure"
        | "InsufficientAccountPermissions" => (Kind::Config, RIGHTS),
        "QuotaExceeded"
        | "ServiceQuotaExceeded"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "InsufficientCapacity" => (Kind::Unavailable, "the store is full: make room, or raise the bucket's quota"),
        "InvalidBucketName" => (Kind::Config, "correct catalog.warehouse"),
        "InvalidEncryptionAlgorithmError" | "MethodNotAllowed" | "NotImplemented" => (Kind::Config, UNSUPPORTED),
        code if code.starts_with("KMS.") => (Kind::Config, UNSUPPORTED),
        _ => return None,
    })
}

/// Where keys come from an instance's role or the like, and did not come.
fn of_credentials(missing: &NoCredentials, error: &object_store::Error) -> (Kind, String, &'static str) {
    let is_refused = status(error).is_some_and(|status| status.starts_with('4') && !status.starts_with("429"));
    match (missing.is_expected, is_refused) {
        (true, false) => (
            Kind::Unavailable,
            "the server that gives credentials, which the environment names, does not answer".to_owned(),
            "see AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_WEB_IDENTITY_TOKEN_FILE and their like; the next pass tries again",
        ),
        (true, true) => (
            Kind::Config,
            "the server that gives credentials, which the environment names, gives none".to_owned(),
            "see AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_WEB_IDENTITY_TOKEN_FILE, their like and the role behind them",
        ),
        (false, _) => (
            Kind::Config,
            "there are no credentials for the store".to_owned(),
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let \"s3.credentials-file\" or \"s3.profile-name\" in catalog.properties name where \
             they are; neither does the catalog lend some, nor has this host a role",
        ),
    }
}

/// The text without what must not show.
fn hide<'a>(text: &str, secrets: impl Iterator<Item = &'a Secret>) -> String {
    let secrets = secrets.map(Secret::expose).filter(|secret| secret.len() >= MIN_SECRET_BYTES);
    secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "<secret>"))
}

/// Also what an I/O error wraps, which is not its source.
fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    iter::successors(Some(first), |cause| match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => (*cause).source(),
    })
}

fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind)
}

/// Whether the connection ended in the middle of a request or of its answer.
pub(super) fn was_cut(error: &object_store::Error) -> bool {
    let of_others = [HttpErrorKind::Connect, HttpErrorKind::Timeout];
    transport(error).is_some_and(|kind| !of_others.contains(&kind))
}

/// What is wrong where TLS cannot begin, which stays so until a person acts.
fn tls(error: &object_store::Error) -> Option<(Kind, &'static str, &'static str)> {
    match causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())? {
        rustls::Error::InvalidCertificate(_) => Some((
            Kind::Config,
            "the store's certificate is not to be trusted",
            "name the certificate of its authority in catalog.ca_file; it must be for this host name, and not have expired",
        )),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some((
            Kind::Config,
            "what listens there does not speak TLS",
            "see host and port of \"s3.endpoint\", and whether it must begin with http://",
        )),
        _ => None,
    }
}

/// The code of an answer, `<Code>` of S3, Azure and Google alike. The client keeps the answer in the text of its errors only.
fn code(error: &object_store::Error) -> Option<String> {
    causes(error).find_map(|cause| {
        let text = cause.to_string();
        let of_deletion = || Some(text.rsplit_once(" (code: ")?.1.strip_suffix(')')?.to_owned());
        // S3 sends to the region of the bucket without saying where that is.
        let of_redirect =
            || text.contains("Received redirect without LOCATION").then(|| "PermanentRedirect".to_owned());
        element(&text, "Code").or_else(of_deletion).or_else(of_redirect)
    })
}

/// What the store says of it, on one line. Its other elements may quote the request.
fn message(error: &object_store::Error) -> Option<String> {
    let message = causes(error).find_map(|cause| element(&cause.to_string(), "Message"))?;
    let first_line = message.lines().next().unwrap_or_default().trim();
    let plain = [
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    let line = plain.iter().fold(first_line.to_owned(), |text, (entity, character)| text.replace(entity, character));
    let line: String = line.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect();
    (!line.is_empty()).then_some(line)
}

/// The status of an answer without a code, such as `502 Bad Gateway`: of a proxy, mostly.
fn status(error: &object_store::Error) -> Option<String> {
    causes(error).find_map(|cause| {
        let text = cause.to_string();
        let (_, rest) = text.split_once("status code: ")?;
        let status = rest.split([':', '\n']).next().unwrap_or_default().trim();
        status.starts_with(|c: char| c.is_ascii_digit()).then(|| status.to_owned())
    })
}

fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(code: &str) -> object_store::Error {
        let body = format!(
            "Error performing PUT http://h/b/k?sig=s3cret in 1ms - Server returned non-2xx status code: 403 Forbidden: \
             <?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no.</Message><StringToSign>s3cret</StringToSign></Error>"
        );
        object_store::Error::PermissionDenied { path: "k".into(), source: body.into() }
    }

    fn told(error: object_store::Error) -> Error {
        Access::default().failed("write", "s3://b/k", error)
    }

    #[test]
    fn codes_say_who_must_act() {
        for (code, kind, hint) in [
            ("SignatureDoesNotMatch", Kind::Config, "credentials"),
            ("NoSuchBucket", Kind::Config, "bucket"),
            ("PermanentRedirect", Kind::Config, "s3.region"),
            ("ExpiredToken", Kind::Config, "expired"),
            ("AccessDenied", Kind::Config, "policy"),
            ("SomethingElse", Kind::Config, "policy"),
            ("QuotaExceeded", Kind::Unavailable, "full"),
            ("KMS.NotFoundException", Kind::Config, "s3.sse.key"),
        ] {
            let error = told(forbidden(code));
            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.hint_text().contains(hint), "{code}: {}", error.hint_text());
            assert_eq!(error.to_string(), format!("write s3://b/k: {code}: no."));
        }
    }

    #[test]
    fn expired_credentials_that_somebody_renews_are_waited_for() {
        let access = Access { is_renewed: true, ..Access::default() };
        assert_eq!(access.failed("read", "s3://b/k", forbidden("ExpiredToken")).kind(), Kind::Unavailable);
    }

    #[test]
    fn what_the_client_says_in_its_own_words_is_understood() {
        let generic = |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        for (text, kind, says) in [
            (
                "DeleteObjects request failed for key k: Access Denied (code: AccessDenied)",
                Kind::Config,
                "AccessDenied",
            ),
            ("Received redirect without LOCATION, this normally indicates ..", Kind::Config, "PermanentRedirect"),
            (
                "Server returned non-2xx status code: 502 Bad Gateway: <html>",
                Kind::Unavailable,
                "answers 502 Bad Gateway",
            ),
            ("GET http://h/?sig=s3cret failed", Kind::Unavailable, "the store failed"),
        ] {
            let error = told(generic(text));
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.to_string().ends_with(says), "{error}");
        }
    }

    #[test]
    fn certificates_are_found_under_errors_of_io() {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let source = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown)).into();
        let error = told(object_store::Error::Generic { store: "S3", source });
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.hint_text().contains("catalog.ca_file"));
    }

    #[test]
    fn secrets_do_not_show() {
        let access = Access {
            secrets: vec![Secret::new("no.".into()), Secret::new("AccessDenied".into())],
            ..Access::default()
        };
        // One that is short hides nothing.
        assert_eq!(
            access.failed("read", "s3://b/k", forbidden("AccessDenied")).to_string(),
            "read s3://b/k: <secret>: no."
        );
    }

    #[test]
    fn a_bucket_that_is_gone_is_no_file_that_is_gone() {
        let missing = |code: &str| {
            let source = format!("404: <Error><Code>{code}</Code></Error>").into();
            Access::default().missing("read", "s3://b/k", object_store::Error::NotFound { path: "k".into(), source })
        };
        for code in ["NoSuchKey", "BlobNotFound", "PathNotFound"] {
            assert!(matches!(missing(code), Missing::Gone(_)), "{code}");
        }
        for code in ["NoSuchBucket", "ContainerNotFound"] {
            assert!(matches!(missing(code), Missing::Failed(_)), "{code}");
        }
    }
}
