//! What PostgreSQL's errors mean: by SQLSTATE and type, never by text (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use std::io;
use std::time::Duration;

use tokio_postgres::error::Severity;

use super::settings::Settings;
use crate::error::{Error, Kind, causes};

/// Why a statement has no result.
#[derive(Debug)]
pub enum Fault {
    /// The server said so, or the connection broke.
    Server(tokio_postgres::Error),
    /// No answer came.
    TimedOut(Duration),
    /// The connection was given up before.
    Closed,
}

impl Fault {
    fn state(&self) -> Option<&str> {
        match self {
            Self::Server(error) => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }

    /// Whether the server answered the statement and the session goes on.
    pub fn is_answer(&self) -> bool {
        self.is_of(Severity::Error)
    }

    fn is_of(&self, severity: Severity) -> bool {
        match self {
            Self::Server(error) => error.as_db_error().is_some_and(|e| e.parsed_severity() == Some(severity)),
            _ => false,
        }
    }

    /// Whether there was no connection any more: the statement may be sent again where it does no harm twice.
    pub fn is_broken_connection(&self) -> bool {
        match self {
            Self::Server(error) => match error.as_db_error() {
                Some(_) => self.state().is_some_and(ends_session),
                None => error.is_closed() || io_error(error).is_some(),
            },
            _ => false,
        }
    }

    /// Whether the server says that it took back the transaction whose COMMIT this answers.
    pub fn is_rolled_back(&self) -> bool {
        self.is_answer() && self.state().is_some_and(takes_back)
    }

    /// Sorts an error of a statement.
    pub fn classify(self) -> Error {
        match self {
            Self::TimedOut(limit) => timed_out(limit),
            Self::Closed => Error::new(Kind::Unavailable, "the connection was closed"),
            Self::Server(error) => match error.as_db_error() {
                Some(answer) => {
                    let (kind, hint) = of_state(answer.code().code());
                    answered(kind, answer).hint(hint)
                }
                None if error.is_closed() || io_error(&error).is_some() => Error::from_cause(Kind::Unavailable, error),
                // Of our own statements and of the types of their columns.
                None => Error::from_cause(Kind::Config, error)
                    .hint("a table there has not the columns that it should have, or the server is not PostgreSQL"),
            },
        }
    }

    /// Sorts an error of a connection that could not be made.
    pub fn classify_connect(self, settings: &Settings) -> Error {
        let error = match self {
            Self::Server(error) if error.as_db_error().is_none() => error,
            Self::TimedOut(limit) => {
                return timed_out(limit).hint("see whether host and port of the URI are right and nothing stands between; the next pass tries again");
            }
            other => return other.classify(),
        };
        if let Some(tls) = tls_error(&error) {
            let hint = match tls {
                rustls::Error::InvalidCertificate(_) => {
                    "name the authority that signed the server's certificate with ca_file; the certificate must be for the host of the URI"
                }
                _ => {
                    "see which TLS the server speaks, and whether it wants a certificate of ours, which is not supported"
                }
            };
            return Error::from_cause(Kind::Config, error).hint(hint);
        }
        match io_error(&error).map(io::Error::kind) {
            Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => {
                Error::from_cause(Kind::Config, error).hint("see whether host and port of the URI are those of PostgreSQL")
            }
            Some(_) => Error::from_cause(Kind::Unavailable, error)
                .hint("see whether the server runs and can be reached; the next pass tries again"),
            None if error.is_closed() => Error::from_cause(Kind::Unavailable, error),
            None if !settings.has_password => Error::from_cause(Kind::Config, error)
                .hint("see host, port and sslmode of the URI; the server may want a password, which password_env or password_file names"),
            None => Error::from_cause(Kind::Config, error)
                .hint("see host, port and sslmode of the URI: the server may not be PostgreSQL, or speak no TLS"),
        }
    }
}

fn timed_out(limit: Duration) -> Error {
    Error::new(Kind::Unavailable, format!("no answer within {limit:?}"))
}

/// Only its first line: details may hold values of rows.
fn answered(kind: Kind, answer: &tokio_postgres::error::DbError) -> Error {
    Error::new(kind, format!("{} (SQLSTATE {})", answer.message(), answer.code().code()))
}

/// What to do about a SQLSTATE.
fn of_state(state: &str) -> (Kind, &'static str) {
    let class = state.get(..2).unwrap_or_default();
    match (state, class) {
        ("28P01" | "28000", _) => (
            Kind::Config,
            "correct the user of the URI or its password (password_env, password_file), or let it in (pg_hba.conf)",
        ),
        ("3D000", _) => (Kind::Config, "correct the database of the URI, or create it"),
        ("42501", _) => (Kind::Config, "grant it to the user of the URI"),
        ("3F000", _) => (Kind::Config, "no schema of the user's search_path exists: create one, or set search_path"),
        // Of BEGIN READ WRITE, which is all that we ask for that a standby cannot do.
        ("25006" | "0A000", _) => {
            (Kind::Unavailable, "the server does not take changes: it is a standby or set to read only")
        }
        ("55P03" | "57014", _) => (
            Kind::Unavailable,
            "another session holds the row, see which (pg_stat_activity); the next pass tries again",
        ),
        ("53100", _) => (Kind::Unavailable, "the disk of the database is full"),
        ("53300", _) => (Kind::Unavailable, "the server has no connection left; the next pass tries again"),
        ("22001", _) => (Kind::Refused, "a name or location is longer than the column of the table takes"),
        ("XX001" | "XX002", _) => (Kind::Internal, "the database is damaged; restore it from a backup"),
        (_, "42") => (Kind::Config, "a table there has not the columns that it should have"),
        (_, "22" | "23") => (Kind::Internal, Kind::Internal.policy().hint),
        _ => (Kind::Unavailable, "see the server's log; the next pass tries again"),
    }
}

/// Classes of errors by which PostgreSQL ends a transaction, and never after it is durable. A class that is not here says nothing of COMMIT.
fn takes_back(state: &str) -> bool {
    // 40003: statement completion unknown.
    state != "40003" && matches!(state.get(..2), Some("22" | "23" | "25" | "40" | "42" | "44" | "53" | "55"))
}

/// The server or an administrator ended the session, or is just starting.
fn ends_session(state: &str) -> bool {
    state.starts_with("08") || matches!(state, "57P01" | "57P02" | "57P03" | "57P05" | "25P03")
}

fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn tls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_has_its_kind() {
        for (state, kind) in [
            ("28P01", Kind::Config),
            ("28000", Kind::Config),
            ("3D000", Kind::Config),
            ("42501", Kind::Config),
            ("42P01", Kind::Config),
            ("08006", Kind::Unavailable),
            ("57P01", Kind::Unavailable),
            ("57P03", Kind::Unavailable),
            ("53300", Kind::Unavailable),
            ("40001", Kind::Unavailable),
            ("40P01", Kind::Unavailable),
            ("55P03", Kind::Unavailable),
            ("25006", Kind::Unavailable),
            ("22001", Kind::Refused),
            ("XX001", Kind::Internal),
            ("XX000", Kind::Unavailable),
            ("", Kind::Unavailable),
        ] {
            assert_eq!(of_state(state).0, kind, "{state}");
        }
    }

    /// P14: what is not surely taken back may have been committed.
    #[test]
    fn only_what_the_server_took_back_is_not_done() {
        for state in ["40001", "40P01", "23505", "25P02", "42501", "53100", "55P03"] {
            assert!(takes_back(state), "{state}");
        }
        for state in ["40003", "57P01", "57P02", "57014", "08006", "08P01", "58030", "XX000", ""] {
            assert!(!takes_back(state), "{state}");
        }
    }
}
