//! What a pass, or an audit, saw of the troubles of its tables: pure.

use std::time::Duration;

use super::{Observed, Trouble};
use crate::error::Kind;
use crate::report::{AuditTable, RunTable};
use crate::state::TableState;

/// What a pass saw of a table, of which the cache remembers `state` now. A pass that was skipped or stopped saw nothing.
pub fn of_pass(report: &RunTable, state: Option<&TableState>, max_lag: Duration, now_ms: i64) -> Vec<Observed> {
    let error = report.error.as_ref();
    if error.is_some_and(|error| matches!(error.kind, Kind::Locked | Kind::Stopped)) {
        return Vec::new();
    }
    let target = &report.target;
    let failed = error.map(|error| (error.message.clone(), error.hint.clone()));
    let mut observed = vec![Observed { target: target.clone(), trouble: Trouble::Failed, found: failed }];
    if let Some(lag) = state.and_then(|state| state.lag_seconds(now_ms)) {
        let lag = Duration::from_secs(lag.unsigned_abs());
        let found = (lag > max_lag).then(|| {
            let (lag, limit) = (humantime::format_duration(lag), humantime::format_duration(max_lag));
            (
                format!("it lags {lag}, more than max_lag = {limit}"),
                "see why passes fail or take so long: `k2-offload history`".to_owned(),
            )
        });
        observed.push(Observed { target: target.clone(), trouble: Trouble::Lag, found });
    }
    observed
}

/// What an audit saw of a table, of which the cache remembers `state` now; nothing where it could not compare for now.
pub fn of_audit(report: &AuditTable, state: Option<&TableState>) -> Option<Observed> {
    let (target, trouble) = (report.target.clone(), Trouble::AuditMismatch);
    if let Some(error) = report.error.as_ref().filter(|error| error.kind.needs_person()) {
        return Some(Observed { target, trouble, found: Some((error.message.clone(), error.hint.clone())) });
    }
    let mismatches = report.mismatches()?;
    let mismatches = state.and_then(|state| state.audit_mismatches).map_or(mismatches, i64::unsigned_abs);
    let found = (mismatches > 0).then(|| {
        let hint = "`k2-offload audit --checksum` lists them; `audit --repair` adds what is missing".to_owned();
        (format!("{mismatches} hour(s) with missing or extra rows"), hint)
    });
    Some(Observed { target, trouble, found })
}
