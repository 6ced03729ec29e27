//! What an error of an object store means, by its type and the code in the answer, and what to do about it.
//!
//! Messages are made here: those of the client quote requests, and with them signatures that are as good as a password for a while.

use std::error::Error as StdError;
use std::io;
use std::iter;
use std::path::Path;

use object_store::client::{HttpError, HttpErrorKind};

use super::local::file_error;
use crate::error::{Error, Kind};

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

    pub(super) fn of_object(verb: &str, location: &str, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } if code(&error).is_none_or(|code| code == "NoSuchKey") => {
                Self::Gone(location.to_owned())
            }
            error => Self::Failed(classify(verb, location, error)),
        }
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

/// Sorts an error of an object store.
pub(super) fn classify(verb: &str, location: &str, error: object_store::Error) -> Error {
    let code = code(&error);
    let (kind, what, hint) = judge(code.as_deref(), &error);
    let told = match (&code, message(&error)) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.clone(),
        (None, _) => what.to_owned(),
    };
    Error::new(kind, told).context(format!("{verb} {location}")).hint(hint)
}

/// Kind, what happened where the store gave no code, and hint.
fn judge(code: Option<&str>, error: &object_store::Error) -> (Kind, &'static str, &'static str) {
    use object_store::Error as E;
    const CREDENTIALS: &str = "correct the credentials: what the catalog lends, AWS_ACCESS_KEY_ID and its like, or the file that \"s3.credentials-file\" names";
    const RIGHTS: &str = "these credentials may not do this: the bucket's policy must let them get, put, list and delete objects and abort uploads";
    match (code, error) {
        (Some("NoSuchBucket" | "ContainerNotFound"), _) => {
            (Kind::Config, "", "correct catalog.warehouse, or create the bucket")
        }
        (Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"), _) => {
            (Kind::Config, "", "the bucket is in another region: set \"s3.region\" in catalog.properties")
        }
        (Some("ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired"), _) => (
            Kind::Unavailable,
            "",
            "the credentials have expired: a catalog that lends them lends new ones to the next try; else renew them",
        ),
        (Some("RequestTimeTooSkewed"), _) => (Kind::Config, "", "set the clock of this host"),
        (Some("SignatureDoesNotMatch" | "InvalidAccessKeyId" | "InvalidToken" | "AuthenticationFailed"), _) => {
            (Kind::Config, "", CREDENTIALS)
        }
        (Some("AccessDenied" | "AllAccessDisabled" | "AuthorizationPermissionMismatch"), _) => {
            (Kind::Config, "", RIGHTS)
        }
        (_, E::PermissionDenied { .. }) => (Kind::Config, "the store answers 403", RIGHTS),
        (_, E::Unauthenticated { .. }) => (Kind::Config, "the store answers 401", CREDENTIALS),
        (_, E::NotFound { .. }) => (Kind::Unavailable, "there is no such file", Kind::Unavailable.policy().hint),
        (_, E::InvalidPath { .. }) => {
            (Kind::Refused, "the store takes no such name", "rename the column, or its value")
        }
        (_, E::UnknownConfigurationKey { .. }) => {
            (Kind::Config, "the client was set up wrong", "correct catalog.properties and the environment")
        }
        _ if is_about_certificates(error) => (
            Kind::Config,
            "the store's certificate is not to be trusted",
            "name the certificate of its authority in catalog.ca_file; it must be for this host name, and not have expired",
        ),
        _ => match transport(error) {
            Some(HttpErrorKind::Connect) => (
                Kind::Unavailable,
                "cannot connect to the store",
                "see whether the store is up and \"s3.endpoint\" right; the next pass tries again",
            ),
            Some(HttpErrorKind::Timeout) => (
                Kind::Unavailable,
                "the store did not answer in time",
                "catalog.timeout is the limit; the next pass tries again",
            ),
            Some(_) => (Kind::Unavailable, "the connection was cut", Kind::Unavailable.policy().hint),
            None => (Kind::Unavailable, "the store failed", Kind::Unavailable.policy().hint),
        },
    }
}

fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    iter::successors(Some(first), |cause| (*cause).source())
}

fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind)
}

fn is_about_certificates(error: &object_store::Error) -> bool {
    let is_tls = |cause: &(dyn StdError + 'static)| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = cause.downcast_ref::<rustls::Error>();
        tls.or_else(|| inner?.downcast_ref()).is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)))
    };
    causes(error).any(is_tls)
}

/// The code of an answer, `<Code>` of S3, Azure and Google alike. The client keeps the answer in the text of its errors only.
fn code(error: &object_store::Error) -> Option<String> {
    causes(error).find_map(|cause| element(&cause.to_string(), "Code"))
}

/// What the store says of it. Its other elements may quote the request.
fn message(error: &object_store::Error) -> Option<String> {
    let message = causes(error).find_map(|cause| element(&cause.to_string(), "Message"))?;
    let first_line = message.lines().next().unwrap_or_default().trim();
    (!first_line.is_empty()).then(|| first_line.to_owned())
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

    #[test]
    fn codes_say_who_must_act() {
        for (code, kind, hint) in [
            ("SignatureDoesNotMatch", Kind::Config, "credentials"),
            ("NoSuchBucket", Kind::Config, "bucket"),
            ("PermanentRedirect", Kind::Config, "s3.region"),
            ("ExpiredToken", Kind::Unavailable, "expired"),
            ("AccessDenied", Kind::Config, "policy"),
            ("SomethingElse", Kind::Config, "policy"),
        ] {
            let error = classify("write", "s3://b/k", forbidden(code));
            assert_eq!(error.kind(), kind, "{code}");
            assert!(error.hint_text().contains(hint), "{code}: {}", error.hint_text());
            assert_eq!(error.to_string(), format!("write s3://b/k: {code}: no."));
        }
    }

    #[test]
    fn requests_are_not_quoted() {
        let error = object_store::Error::Generic { store: "S3", source: "GET http://h/?sig=s3cret failed".into() };
        assert!(!classify("read", "s3://b/k", error).to_string().contains("s3cret"));
    }

    #[test]
    fn a_bucket_that_is_gone_is_no_file_that_is_gone() {
        let gone = |code: &str| object_store::Error::NotFound {
            path: "k".into(),
            source: format!("404: <Error><Code>{code}</Code></Error>").into(),
        };
        assert!(matches!(Missing::of_object("read", "s3://b/k", gone("NoSuchKey")), Missing::Gone(_)));
        assert!(matches!(Missing::of_object("read", "s3://b/k", gone("NoSuchBucket")), Missing::Failed(_)));
    }
}
