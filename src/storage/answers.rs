//! What the client of object stores says in its errors: codes, messages, and what went wrong on the way.
//!
//! It keeps the answer of a store in the text of its errors only, and its own errors are of types that nobody else sees.

use object_store::client::{HttpError, HttpErrorKind};
use rustls::InvalidMessage;

use crate::error::causes;

/// Characters of a store's message that are shown.
const MAX_MESSAGE_CHARS: usize = 300;

pub(super) fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind)
}

/// Why TLS cannot begin, which stays so until a person acts.
pub(super) enum Tls {
    Certificate,
    Missing,
}

pub(super) fn tls(error: &object_store::Error) -> Option<Tls> {
    match causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())? {
        rustls::Error::InvalidCertificate(_) => Some(Tls::Certificate),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(Tls::Missing),
        _ => None,
    }
}

/// The code of an answer, `<Code>` of S3, Azure and Google alike.
pub(super) fn code(error: &object_store::Error) -> Option<String> {
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
pub(super) fn message(error: &object_store::Error) -> Option<String> {
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
pub(super) fn status(error: &object_store::Error) -> Option<String> {
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
