//! What an answer of the server means: pure decisions by status and error type, never by message.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::config::Auth;
use crate::error::Kind;

/// Repetitions of a request that the server was too busy for.
const MAX_REPETITIONS: u32 = 4;
/// Longest wait over all of them.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// The first wait where the server names none; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How far our clock may be ahead of the server's; its answer took a while, too.
const MAX_CLOCK_AHEAD: Duration = Duration::from_secs(50);
/// Characters of a server's message that are shown.
const MAX_MESSAGE_CHARS: usize = 300;

/// The server's own word for an outcome that it does not know.
const STATE_UNKNOWN: &str = "CommitStateUnknownException";
/// Java's servers name a table whose metadata file is gone like this, also with 404.
const FILE_NOT_FOUND: &str = "NotFoundException";

/// What became of a change (protocol.md P14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Done,
    /// Certainly not done: a requirement was not met, or the name is taken.
    Conflict,
    /// Certainly not done, for another reason.
    NotDone,
    /// It may have been done.
    Unknown,
}

/// Sorts the answer to a change. What is not certainly rejected is unknown: a proxy's 5xx says nothing about the server behind it.
pub fn verdict(status: u16, told: &str) -> Verdict {
    match status {
        200..=299 => Verdict::Done,
        _ if told == STATE_UNKNOWN => Verdict::Unknown,
        409 => Verdict::Conflict,
        // The request timed out somewhere on its way; a file that was not found may be one that the change itself wrote.
        408 => Verdict::Unknown,
        404 if told == FILE_NOT_FOUND => Verdict::Unknown,
        301 | 307 | 308 | 400..=499 | 501 => Verdict::NotDone,
        _ => Verdict::Unknown,
    }
}

/// What an answer that is no success means for the caller.
pub fn kind(status: u16) -> Kind {
    match status {
        304 | 408 | 425 | 429 => Kind::Unavailable,
        300..=399 | 401 | 403 | 407 | 419 => Kind::Config,
        409 => Kind::Conflict,
        501 => Kind::Refused,
        500.. => Kind::Unavailable,
        _ => Kind::Refused,
    }
}

/// What to do about it, where there is more to say than the kind says.
pub fn hint(status: u16, who: &Auth) -> Option<&'static str> {
    Some(match (status, who) {
        (300..=399, _) => "it sends elsewhere, where no credentials are sent; let catalog.uri name the URL behind it",
        (401 | 419, Auth::None) => "give catalog.token or catalog.credential, by _env or _file",
        (401 | 419, Auth::Token(_)) => {
            "the token is wrong or has expired; renew what catalog.token_env or token_file holds"
        }
        (401 | 419, Auth::Client(..)) => "correct catalog.credential, and scope and audience in catalog.properties",
        (403, _) => "let the catalog's administrator grant reading, creating and committing tables to this client",
        (407, _) => "the proxy that HTTPS_PROXY or HTTP_PROXY names wants credentials",
        (404, _) => "see in the catalog what it has there: namespace, table and their warehouse",
        (400, _) => "see the catalog's log; it refuses snapshots of a clock that is a minute ahead of its own, too",
        (405 | 406 | 413 | 422 | 501, _) => {
            "the catalog does not take what Iceberg's REST protocol allows; see its log"
        }
        _ => return None,
    })
}

/// Whether a 404 says that there is no such table or namespace; one of another origin says that the URL is wrong, or files are gone.
pub fn no_such_table(told: &str) -> bool {
    ["NoSuchTableException", "NoSuchNamespaceException", "TableNotFound", "NamespaceNotFound"].contains(&told)
}

/// How often and how long a busy server is waited for within one call.
#[derive(Debug, Default)]
pub struct Patience {
    repetitions: u32,
    waited: Duration,
}

impl Patience {
    /// How long to wait before the same request goes out again; `None` if it does not. A change is repeated only where it was certainly
    /// not begun (429).
    pub fn pause(&mut self, status: u16, asked: Option<Duration>, is_change: bool) -> Option<Duration> {
        let pause = asked.unwrap_or(FIRST_PAUSE * 2_u32.pow(self.repetitions));
        let busy = status == 429 || (status == 503 && !is_change);
        if !busy || self.repetitions == MAX_REPETITIONS || pause > MAX_WAIT.saturating_sub(self.waited) {
            return None;
        }
        self.repetitions += 1;
        self.waited += pause;
        Some(pause)
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(value).ok()?.to_utc();
    Some((until - now).to_std().unwrap_or_default())
}

/// How far a clock is ahead of a server's, by the `Date` of an answer, where that is more than servers of tables bear: those of Iceberg refuse
/// snapshots that are a minute newer than their own clock (TableMetadata's constructor).
pub fn clock_ahead(date: &str, now: DateTime<Utc>) -> Option<Duration> {
    let date = DateTime::parse_from_rfc2822(date.trim()).ok()?.to_utc();
    (now - date).to_std().ok().filter(|ahead| *ahead > MAX_CLOCK_AHEAD)
}

/// What the body of an error says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Iceberg's name of the error, or OAuth's; empty where the body is neither's.
    pub kind: String,
    /// The message, on one line, without secrets; may be empty.
    pub message: String,
}

impl Told {
    /// Reads Iceberg's `{"error": {"message", "type", "code"}}` or OAuth's `{"error", "error_description"}`. Other bodies, mostly pages of
    /// a proxy, say nothing.
    pub fn read(body: &[u8], hide: impl Fn(&str) -> String) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &body["error"];
        let (kind, message) = match error.as_str() {
            Some(kind) => (kind, &body["error_description"]),
            None => (error["type"].as_str().unwrap_or_default(), &error["message"]),
        };
        let line = |text: &str| {
            let text: String = hide(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            match text.char_indices().nth(MAX_MESSAGE_CHARS) {
                Some((end, _)) => format!("{}..", text.get(..end).unwrap_or_default()),
                None => text,
            }
        };
        Self { kind: line(kind), message: line(message.as_str().unwrap_or_default()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_done_rejected_or_unknown() {
        for (status, told, expected) in [
            (200, "", Verdict::Done),
            (204, "", Verdict::Done),
            (409, "CommitFailedException", Verdict::Conflict),
            (409, "", Verdict::Conflict),
            (400, "BadRequestException", Verdict::NotDone),
            (401, "NotAuthorizedException", Verdict::NotDone),
            (403, "ForbiddenException", Verdict::NotDone),
            (404, "NoSuchTableException", Verdict::NotDone),
            (404, "NotFoundException", Verdict::Unknown),
            (408, "", Verdict::Unknown),
            (419, "", Verdict::NotDone),
            (422, "", Verdict::NotDone),
            (429, "", Verdict::NotDone),
            (303, "", Verdict::Unknown),
            (307, "", Verdict::NotDone),
            (500, "InternalServerError", Verdict::Unknown),
            (500, "CommitStateUnknownException", Verdict::Unknown),
            (400, "CommitStateUnknownException", Verdict::Unknown),
            (501, "", Verdict::NotDone),
            (502, "", Verdict::Unknown),
            (503, "ServiceUnavailableException", Verdict::Unknown),
            (504, "", Verdict::Unknown),
            (599, "", Verdict::Unknown),
        ] {
            assert_eq!(verdict(status, told), expected, "{status} {told}");
        }
    }

    #[test]
    fn what_stays_until_a_person_acts_is_told_apart() {
        for (status, expected) in [
            (302, Kind::Config),
            (401, Kind::Config),
            (403, Kind::Config),
            (419, Kind::Config),
            (400, Kind::Refused),
            (404, Kind::Refused),
            (422, Kind::Refused),
            (409, Kind::Conflict),
            (429, Kind::Unavailable),
            (500, Kind::Unavailable),
            (503, Kind::Unavailable),
            (501, Kind::Refused),
        ] {
            assert_eq!(kind(status), expected, "{status}");
        }
    }

    #[test]
    fn not_every_404_is_a_missing_table() {
        let missing = ["NoSuchTableException", "NoSuchNamespaceException", "TableNotFound"];
        assert!(missing.into_iter().all(no_such_table));
        let others = ["", "NotFoundException", "NoSuchWarehouseException", "Not Found"];
        assert!(!others.into_iter().any(no_such_table));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = DateTime::parse_from_rfc3339("2026-11-27T02:00:00Z").unwrap().to_utc();
        let seconds = |value: &str| retry_after(value, now).map(|pause| pause.as_secs());
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds(" 17 "), Some(17));
        assert_eq!(seconds("Fri, 27 Nov 2026 02:00:09 GMT"), Some(9));
        assert_eq!(seconds("Fri, 27 Nov 2026 01:59:00 GMT"), Some(0));
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("-1"), None);
    }

    #[test]
    fn a_clock_may_be_behind_but_not_far_ahead() {
        let now = DateTime::parse_from_rfc3339("2026-11-27T02:00:00Z").unwrap().to_utc();
        let seconds = |date: &str| clock_ahead(date, now).map(|ahead| ahead.as_secs());
        assert_eq!(seconds("Fri, 27 Nov 2026 01:58:00 GMT"), Some(120));
        assert_eq!(seconds("Fri, 27 Nov 2026 01:59:30 GMT"), None);
        assert_eq!(seconds("Fri, 27 Nov 2026 03:00:00 GMT"), None);
        assert_eq!(seconds("today"), None);
    }

    #[test]
    fn patience_has_an_end() {
        let total = |status, asked: Option<u64>, is_change| {
            let mut patience = Patience::default();
            let asked = asked.map(Duration::from_secs);
            let pauses = std::iter::from_fn(|| patience.pause(status, asked, is_change)).collect::<Vec<_>>();
            (pauses.len(), pauses.iter().sum::<Duration>().as_millis())
        };
        assert_eq!(total(503, None, false), (4, 7500));
        assert_eq!(total(503, Some(10), false), (3, 30_000));
        assert_eq!(total(503, Some(31), false), (0, 0));
        assert_eq!(total(503, Some(0), true), (0, 0), "a change may have been done");
        assert_eq!(total(429, Some(0), true), (4, 0));
        assert_eq!(total(500, Some(0), false), (0, 0));
        assert_eq!(total(429, Some(u64::MAX), false), (0, 0));
    }

    #[test]
    fn bodies_of_errors_are_read_in_both_forms() {
        let told = |body: &str| Told::read(body.as_bytes(), |text| text.replace("s3cret", "<secret>"));
        let of = |kind: &str, message: &str| Told { kind: kind.to_owned(), message: message.to_owned() };
        let iceberg = r#"{"error": {"message": "no\nuse of s3cret", "type": "NoSuchTableException", "code": 404}}"#;
        assert_eq!(told(iceberg), of("NoSuchTableException", "no use of <secret>"));
        let oauth = r#"{"error": "invalid_client", "error_description": "unknown s3cret"}"#;
        assert_eq!(told(oauth), of("invalid_client", "unknown <secret>"));
        assert_eq!(told("<html>s3cret</html>"), Told::default());
        assert_eq!(told(r#"{"error": {"message": null}}"#), Told::default());
        let long = format!(r#"{{"error": {{"message": "{}"}}}}"#, "ä".repeat(1000));
        assert_eq!(told(&long).message.chars().count(), MAX_MESSAGE_CHARS + 2);
    }
}
