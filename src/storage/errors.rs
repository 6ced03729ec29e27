//! What an error of an object store means, by its type and the code in the answer, and what to do about it.
//!
//! Messages are made here: those of the client quote requests, and with them signatures that are as good as a password for a while.

use std::error::Error as StdError;
use std::path::Path;
use std::{fmt, io};

use object_store::client::HttpErrorKind;

use super::answers::{Tls, code, message, status, tls, transport};
use super::local::file_error;
use crate::config::{Secret, hide};
use crate::error::{Error, Kind, causes};

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

/// Whose protocol a store speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Cloud {
    #[default]
    S3,
    Google,
    Azure,
}

impl Cloud {
    /// Variables that say that credentials can be fetched, and where.
    pub(super) fn fetched_from(self) -> &'static [&'static str] {
        match self {
            Self::S3 => &[
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            ],
            Self::Google => {
                &["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"]
            }
            Self::Azure => &[
                "AZURE_CLIENT_ID",
                "AZURE_STORAGE_CLIENT_ID",
                "AZURE_FEDERATED_TOKEN_FILE",
                "IDENTITY_ENDPOINT",
                "MSI_ENDPOINT",
            ],
        }
    }

    /// Where credentials come from, for a hint.
    fn sources(self) -> &'static str {
        match self {
            Self::S3 => {
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the file that \"s3.credentials-file\" names, or a role of this host"
            }
            Self::Google => {
                "the file that \"gcs.credentials-file\" or GOOGLE_APPLICATION_CREDENTIALS names, or the service account of this host"
            }
            Self::Azure => {
                "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID and its like, or the identity of this host"
            }
        }
    }

    /// The property that says where the store is.
    fn endpoint(self) -> &'static str {
        match self {
            Self::S3 => "s3.endpoint",
            Self::Google => "gcs.service.host",
            Self::Azure => "adls.endpoint",
        }
    }
}

/// How we got into a bucket, and what must not show in an error.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// Whose protocol it speaks.
    pub cloud: Cloud,
    /// Whether credentials that expired are others the next time: those of a catalog, or of an instance's role.
    pub is_renewed: bool,
    /// Shown nowhere.
    pub secrets: Vec<Secret>,
}

impl Access {
    /// Sorts an error of the store.
    pub(super) fn failed(&self, verb: &str, location: &str, error: object_store::Error) -> Error {
        let code = code(&error);
        let (kind, what, hint) = self.judge(code.as_deref(), &error);
        let told = match (&code, message(&error)) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.clone(),
            (None, _) => what,
        };
        let told = hide(&told, self.secrets.iter().map(Secret::expose));
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
const RIGHTS: &str = "these credentials may not do this: let them get, put, list and delete objects and abort uploads there; `k2-offload config check` prints what a bucket's policy must allow";
const REGION: &str = "the bucket is in another region: set \"s3.region\" in catalog.properties";
const UNSUPPORTED: &str = "the store does not do what it was asked for: see \"s3.sse.type\", \"s3.sse.key\", \"s3.checksum-enabled\" and \"s3.path-style-access\" in catalog.properties";

impl Access {
    /// Kind, what happened where the store gave no code, and hint.
    fn judge(&self, code: Option<&str>, error: &object_store::Error) -> (Kind, String, String) {
        use object_store::Error as E;
        if let Some(missing) = causes(error).find_map(|cause| cause.downcast_ref::<NoCredentials>()) {
            return self.of_credentials(missing, error);
        }
        let plain = |kind, what: &str, hint: &str| (kind, what.to_owned(), hint.to_owned());
        let endpoint = self.cloud.endpoint();
        match (code, error) {
            (Some(code), _) if is_of_bucket(code) => {
                plain(Kind::Config, "", "correct catalog.warehouse, or create the bucket")
            }
            (Some(code), _) => {
                let (kind, hint) = self.of_code(code).unwrap_or_else(|| match error {
                    E::PermissionDenied { .. } => (Kind::Config, RIGHTS.to_owned()),
                    E::Unauthenticated { .. } => (Kind::Config, self.correct_credentials()),
                    _ => (Kind::Unavailable, NEXT_PASS.to_owned()),
                });
                (kind, String::new(), hint)
            }
            (_, E::PermissionDenied { .. }) => plain(Kind::Config, "the store answers 403", RIGHTS),
            (_, E::Unauthenticated { .. }) => plain(Kind::Config, "the store answers 401", &self.correct_credentials()),
            (_, E::NotFound { .. }) => plain(Kind::Unavailable, "there is no such file", NEXT_PASS),
            (_, E::InvalidPath { .. }) => {
                plain(Kind::Refused, "the store takes no such name", "rename the column, or its value")
            }
            (_, E::UnknownConfigurationKey { .. }) => {
                plain(Kind::Config, "the client was set up wrong", "correct catalog.properties and the environment")
            }
            _ => match (tls(error), transport(error), status(error)) {
                (Some(Tls::Certificate), ..) => plain(
                    Kind::Config,
                    "the store's certificate is not to be trusted",
                    "name the certificate of its authority in catalog.ca_file; it must be for this host name, and not have expired",
                ),
                (Some(Tls::Missing), ..) => plain(
                    Kind::Config,
                    "what listens there does not speak TLS",
                    &format!("see host and port of \"{endpoint}\", and whether it must begin with http://"),
                ),
                (_, Some(HttpErrorKind::Connect), _) => plain(
                    Kind::Unavailable,
                    "cannot connect to the store",
                    &format!("see whether the store is up and \"{endpoint}\" right; the next pass tries again"),
                ),
                (_, Some(HttpErrorKind::Timeout), _) => plain(
                    Kind::Unavailable,
                    "the store did not answer in time",
                    "catalog.timeout is the limit; the next pass tries again",
                ),
                (_, Some(_), _) => plain(Kind::Unavailable, "the connection was cut", NEXT_PASS),
                (_, None, Some(status)) => plain(Kind::Unavailable, &format!("the store answers {status}"), NEXT_PASS),
                (_, None, None) => plain(Kind::Unavailable, "the store failed", NEXT_PASS),
            },
        }
    }

    /// What a code says by itself, whatever the status with it.
    fn of_code(&self, code: &str) -> Option<(Kind, String)> {
        let (kind, hint) = match code {
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => (Kind::Config, REGION),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" if self.is_renewed => {
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
            | "AuthenticationRequired"
            | "InvalidAuthenticationInfo"
            | "NoAuthenticationInformation" => {
                return Some((Kind::Config, self.correct_credentials()));
            }
            "AccessDenied"
            | "AllAccessDisabled"
            | "AuthorizationPermissionMismatch"
            | "AuthorizationFailure"
            | "InsufficientAccountPermissions" => (Kind::Config, RIGHTS),
            "QuotaExceeded"
            | "ServiceQuotaExceeded"
            | "XMinioStorageFull"
            | "XMinioAdminBucketQuotaExceeded"
            | "InsufficientCapacity" => {
                (Kind::Unavailable, "the store is full: make room, or raise the bucket's quota")
            }
            "InvalidBucketName" => (Kind::Config, "correct catalog.warehouse"),
            "InvalidEncryptionAlgorithmError" | "MethodNotAllowed" | "NotImplemented" => (Kind::Config, UNSUPPORTED),
            code if code.starts_with("KMS.") => (Kind::Config, UNSUPPORTED),
            _ => return None,
        };
        Some((kind, hint.to_owned()))
    }

    /// Where credentials come from elsewhere, and did not come.
    fn of_credentials(&self, missing: &NoCredentials, error: &object_store::Error) -> (Kind, String, String) {
        let is_refused = status(error).is_some_and(|status| status.starts_with('4') && !status.starts_with("429"));
        let (kind, what, then) = match (missing.is_expected, is_refused) {
            (true, false) => (
                Kind::Unavailable,
                "the server that gives credentials, which the environment names, does not answer",
                "; the next pass tries again",
            ),
            (true, true) => (
                Kind::Config,
                "the server that gives credentials, which the environment names, gives none",
                " and the role or client behind them",
            ),
            (false, _) => {
                let hint = format!("let there be {}; the catalog lends none", self.cloud.sources());
                return (Kind::Config, "there are no credentials for the store".to_owned(), hint);
            }
        };
        (kind, what.to_owned(), format!("see {}{then}", self.cloud.fetched_from().join(", ")))
    }

    fn correct_credentials(&self) -> String {
        format!("correct the credentials: what the catalog lends, or {}", self.cloud.sources())
    }
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
