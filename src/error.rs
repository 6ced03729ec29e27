//! What can go wrong, sorted by what to do about it.
//!
//! An [`Error`] is a chain of causes plus a [`Kind`]. The kind is chosen where a foreign error enters (ClickHouse,
//! SQLite, the file system, Iceberg), by type or code and never by message text; from then on only the kind decides
//! whether a pass tries again and with which code the process exits.

use std::error::Error as StdError;
use std::{fmt, io, iter};

use serde::Serialize;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Usage or configuration is wrong; trying again changes nothing.
    Config,
    /// Something that we need is not there now; the next pass may succeed by itself.
    Unavailable,
    /// Somebody else committed first; the next pass plans on what they left.
    Conflict,
    /// A commit of which nobody can tell whether it landed; its files were kept.
    Unknown,
    /// Data or a target that we must not guess about; a person is needed.
    Refused,
    /// Another pass works on this table.
    Locked,
    /// Another process holds the catalog; it was waited for.
    Busy,
    /// The time of this pass is over.
    Deadline,
    /// SIGTERM or SIGINT asked us to stop.
    Stopped,
    /// A bug, or a state that was thought impossible; a person is needed.
    Internal,
}

/// What follows from a [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Exit code of the process.
    pub exit: u8,
    /// Whether the same pass tries the table again.
    pub retry: bool,
    /// Printed where the error brings no hint of its own.
    pub hint: &'static str,
}

impl Kind {
    /// The one table from kind to retry, exit code and hint.
    pub const fn policy(self) -> Policy {
        let (exit, retry, hint) = match self {
            Kind::Config => (2, false, "correct the configuration or the command line, then run again"),
            Kind::Unavailable => (1, true, "nothing was changed; the next pass tries again"),
            Kind::Conflict => (1, true, "another writer committed first; the next pass plans anew"),
            Kind::Unknown => {
                (1, false, "the files of the commit were kept; the next pass asks the table whether it landed")
            }
            Kind::Refused => (3, false, "nothing was changed; a person has to decide"),
            Kind::Locked => (4, false, "another pass is at work on this table; the next one takes over"),
            Kind::Busy => (1, false, "nothing was changed; the next pass tries again"),
            Kind::Deadline => (1, false, "what was committed stays; the next pass goes on where this one ended"),
            Kind::Stopped => (143, false, "stopped by a signal; the next pass goes on where this one ended"),
            Kind::Internal => (3, false, "this is a bug or a damaged file; nothing more was changed"),
        };
        Policy { exit, retry, hint }
    }

    /// Whether it stays until a person acts.
    pub fn needs_person(self) -> bool {
        matches!(self.policy().exit, 2 | 3)
    }
}

/// An error of known [`Kind`], with its chain of causes and what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    cause: anyhow::Error,
    hint: Option<String>,
}

impl Error {
    /// An error that starts here.
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, cause: anyhow::Error::msg(message.to_string()), hint: None }
    }

    /// An error that a foreign error caused.
    pub fn from_cause(kind: Kind, cause: impl Into<anyhow::Error>) -> Self {
        Self { kind, cause: cause.into(), hint: None }
    }

    /// [`Kind::Refused`], the commonest kind that starts here.
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// Replaces the hint of the kind.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts `context` (a verb and its object) in front of the chain.
    pub fn context(mut self, context: impl fmt::Display + Send + Sync + 'static) -> Self {
        self.cause = self.cause.context(context);
        self
    }

    /// The same error once more, for another table that it hits.
    pub fn repeat(&self) -> Self {
        Self { kind: self.kind, cause: anyhow::Error::msg(self.to_string()), hint: self.hint.clone() }
    }

    /// What the error means.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What to do about it.
    pub fn hint_text(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.kind.policy().hint)
    }
}

/// The whole chain on one line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)
    }
}

impl StdError for Error {}

/// An error and its causes, also what an [`io::Error`] wraps: that is not its source, which is below it.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(Some(error), |&cause| match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => cause.source(),
    })
}

/// Gives a foreign error its [`Kind`] and context in one go.
pub trait Classify<T> {
    /// Maps the error with `kind` and puts `context` in front.
    fn or_error(self, kind: Kind, context: impl fmt::Display + Send + Sync + 'static) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> Classify<T> for std::result::Result<T, E> {
    fn or_error(self, kind: Kind, context: impl fmt::Display + Send + Sync + 'static) -> Result<T> {
        self.map_err(|e| Error::from_cause(kind, e).context(context))
    }
}

/// Adds context to an error whose kind is known.
pub trait Context<T> {
    /// Puts what `context` returns in front of the chain.
    fn context_with<C: fmt::Display + Send + Sync + 'static>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context_with<C: fmt::Display + Send + Sync + 'static>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
}

/// The exit code over several tables: 3, then 2, 1, 4, 0; a signal outranks them all.
pub fn worst_exit(codes: impl IntoIterator<Item = u8>) -> u8 {
    const ORDER: [u8; 6] = [0, 4, 1, 2, 3, 143];
    let rank = |code: u8| ORDER.iter().position(|c| *c == code).unwrap_or(ORDER.len());
    codes.into_iter().max_by_key(|c| rank(*c)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_exit_follows_the_contract() {
        assert_eq!(worst_exit([]), 0);
        assert_eq!(worst_exit([0, 4]), 4);
        assert_eq!(worst_exit([4, 1, 0]), 1);
        assert_eq!(worst_exit([1, 2, 4]), 2);
        assert_eq!(worst_exit([2, 3, 1]), 3);
        assert_eq!(worst_exit([143, 3]), 143);
    }

    #[test]
    fn errors_print_their_chain_on_one_line() {
        let error = Error::new(Kind::Unavailable, "connection refused").context("read clock of `db`.`t`");
        assert_eq!(error.to_string(), "read clock of `db`.`t`: connection refused");
        assert_eq!(error.hint_text(), Kind::Unavailable.policy().hint);
    }
}
