//! Telling somebody: a table fails, lags, or holds other rows than its source, and when that is over. Each trouble is told once.
//!
//! [`judge`] is pure. What was told is remembered in the state cache, as soon as it has been delivered; without the cache, troubles are told at
//! every pass, and ends never: rather twice than not.

mod deliver;
mod observe;

use serde::Serialize;

use self::deliver::deliver;
pub use self::deliver::find_program;
pub use self::observe::{of_audit, of_pass};
use crate::clock::now;
use crate::config::Config;
use crate::state::{Incident, State};

/// What can be wrong with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The last pass over it failed.
    Failed,
    /// It lags more than `max_lag`.
    Lag,
    /// The last audit found missing or extra rows.
    AuditMismatch,
}

impl Trouble {
    /// As documents and the state cache spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Lag => "lag",
            Self::AuditMismatch => "audit_mismatch",
        }
    }
}

/// What was seen of a table: a trouble that it has, or has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The table.
    pub target: String,
    /// Which trouble.
    pub trouble: Trouble,
    /// What is wrong and what to do, where it has it.
    pub found: Option<(String, String)>,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// `failed`, `lag`, `audit_mismatch`, or `recovered` from one of them.
    pub event: &'static str,
    /// Which of the three.
    pub trouble: &'static str,
    /// The table.
    pub table: String,
    /// When the trouble was seen first, RFC 3339.
    pub since: String,
    /// What is wrong; null once it is not.
    pub message: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What follows from what was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// To be told.
    pub events: Vec<Event>,
    /// Go on; those of `events` are told.
    pub open: Vec<Incident>,
    /// Are over.
    pub over: Vec<Incident>,
}

/// Tells what is new against the incidents that are `known`. A trouble that ended before anybody heard of it is not told at all.
pub fn judge(observed: &[Observed], known: &[Incident], now: &str) -> Judgement {
    let mut judgement = Judgement::default();
    for Observed { target, trouble, found } in observed {
        let name = trouble.name();
        let before = known.iter().find(|incident| incident.target == *target && incident.trouble == name);
        let is_told = before.is_some_and(|incident| incident.told);
        let since = before.map_or(now, |incident| &incident.since).to_owned();
        let incident = Incident { target: target.clone(), trouble: name.to_owned(), since: since.clone(), told: true };
        let (message, hint) = found.clone().unzip();
        let event = |event| Event { event, trouble: name, table: target.clone(), since, message, hint };
        match (found, before) {
            (Some(_), _) if is_told => {}
            (Some(_), _) => {
                judgement.events.push(event(name));
                judgement.open.push(incident);
            }
            (None, Some(_)) => {
                judgement.over.push(incident);
                if is_told {
                    judgement.events.push(event("recovered"));
                }
            }
            (None, None) => {}
        }
    }
    judgement
}

/// What is delivered.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// For people; Slack and Mattermost show it.
    text: String,
    /// Which host tells.
    host: &'a str,
    /// When.
    at: &'a str,
    events: &'a [Event],
}

/// Tells what is new of what was seen. Who cannot be reached is a warning, and is told by the next pass.
pub async fn tell(config: &Config, state: &State, observed: &[Observed]) {
    let at = now();
    let Judgement { events, mut open, mut over } = judge(observed, &state.incidents(), &at);
    if !events.is_empty() {
        let host = crate::guard::host_name();
        let document = Document { text: text(&events, &host), host: &host, at: &at, events: &events };
        if let Err(error) = deliver(&config.notify, &document).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "nobody could be told of what is wrong, the next pass tries again"
            );
            open.iter_mut().for_each(|incident| incident.told = false);
            over.retain(|incident| !events.iter().any(|event| event.is_about(incident)));
        }
    }
    state.remember_incidents(&open, &over);
}

impl Event {
    fn is_about(&self, incident: &Incident) -> bool {
        self.table == incident.target && self.trouble == incident.trouble
    }
}

fn text(events: &[Event], host: &str) -> String {
    let lines = events.iter().map(|event| {
        let Event { event, trouble, table, since, message, hint } = event;
        match (message, hint) {
            (Some(message), Some(hint)) => format!("{table}: {event}: {message} (hint: {hint})"),
            _ => format!("{table}: {event} from `{trouble}` since {since}"),
        }
    });
    format!("k2-offload on {host}\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: &str = "2026-11-21T10:00:00.000Z";
    const T1: &str = "2026-11-21T10:15:00.000Z";

    fn seen(found: bool) -> Observed {
        let found = found.then(|| ("no server".to_owned(), "start it".to_owned()));
        Observed { target: "c.t".into(), trouble: Trouble::Failed, found }
    }

    fn incident(since: &str, told: bool) -> Incident {
        Incident { target: "c.t".into(), trouble: "failed".into(), since: since.into(), told }
    }

    fn events(judgement: &Judgement) -> Vec<(&str, &str)> {
        judgement.events.iter().map(|event| (event.event, event.since.as_str())).collect()
    }

    #[test]
    fn a_trouble_is_told_once_and_its_end_too() {
        let first = judge(&[seen(true)], &[], T0);
        assert_eq!((events(&first), &first.open), (vec![("failed", T0)], &vec![incident(T0, true)]));
        assert_eq!(judge(&[seen(true)], &first.open, T1), Judgement::default());
        let over = judge(&[seen(false)], &first.open, T1);
        assert_eq!((events(&over), &over.over), (vec![("recovered", T0)], &vec![incident(T0, true)]));
        assert_eq!(judge(&[seen(false)], &[], T1), Judgement::default());
    }

    #[test]
    fn what_could_not_be_told_is_told_later_with_its_beginning() {
        let again = judge(&[seen(true)], &[incident(T0, false)], T1);
        assert_eq!((events(&again), &again.open), (vec![("failed", T0)], &vec![incident(T0, true)]));
        let over = judge(&[seen(false)], &[incident(T0, false)], T1);
        assert!(over.events.is_empty() && over.over.len() == 1, "{over:?}");
    }

    #[test]
    fn troubles_and_tables_do_not_mix() {
        let other = Observed { target: "c.other".into(), ..seen(true) };
        let lag = Observed { trouble: Trouble::Lag, ..seen(true) };
        let found = judge(&[other, lag], &[incident(T0, true)], T1);
        assert_eq!(events(&found), [("failed", T1), ("lag", T1)]);
    }
}
