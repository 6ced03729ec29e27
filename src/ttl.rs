//! What the source's TTL means for rows that have not left: pure decisions, and how they are told. They feed no plan.

use std::time::Duration;

use crate::config::Table;
use crate::cursor::{CursorType, MICROS_PER_SECOND, Tick};
use crate::error::Error;
use crate::plan::Window;
use crate::source::Facts;
const SECONDS_PER_HOUR: f64 = 3600.0;

/// Warns, once per table and pass, of rows that expire soon or that are gone; the range of the latter. `looked_to` is the bound up to
/// which passes have looked at the source, `None` before the first commit.
pub fn guard(table: &Table, cursor: CursorType, looked_to: Option<Tick>, facts: &Facts) -> Option<Window> {
    warn(table, seconds_left(facts));
    let lost = lost(cursor, looked_to, facts);
    if let Some(Window { low, high }) = lost {
        // Said at once: a pass that dies after its first commit takes the evidence with it.
        let time = |tick: Option<Tick>| tick.map(|tick| cursor.format(tick));
        tracing::warn!(
            from = time(low),
            to = time(Some(high)),
            "what stood in the source here has outlived its TTL unseen"
        );
    }
    lost
}

/// Seconds until the first row that has not left expires, below 0 where it has; `None` where no row does.
pub fn seconds_left(facts: &Facts) -> Option<i64> {
    facts.expires_at_seconds?.checked_sub(facts.clock_micros.div_euclid(MICROS_PER_SECOND))
}

/// Warns where less is left than the table's `ttl_margin`.
pub fn warn(table: &Table, seconds_left: Option<i64>) {
    let Some(left) = seconds_left.filter(|left| is_short(*left, table.ttl_margin)) else { return };
    let source = &table.source;
    let hours_left = format!("{:.1}", left as f64 / SECONDS_PER_HOUR);
    if left > 0 {
        tracing::warn!(source, hours_left, "rows that have not left yet will soon expire by the source's TTL");
    } else {
        tracing::warn!(
            source,
            hours_left,
            "rows that have not left yet have expired; the source may drop them at any merge"
        );
    }
}

/// Whether less is left than the margin; what has expired is always short.
pub fn is_short(seconds_left: i64, margin: Duration) -> bool {
    u64::try_from(seconds_left).map_or(true, |left| left < margin.as_secs())
}

/// The range of which nobody looked at the rows while they existed: from `looked_to` to the oldest row that is there, where a row at
/// `looked_to` that lived as long as that one would have expired by now.
pub fn lost(cursor: CursorType, looked_to: Option<Tick>, facts: &Facts) -> Option<Window> {
    let (from, oldest, lifetime) = (looked_to?, facts.oldest?, facts.lifetime_seconds?);
    let expired_at = cursor.micros_at(from)?.saturating_add(lifetime.saturating_mul(MICROS_PER_SECOND));
    (from < oldest && expired_at <= facts.clock_micros).then_some(Window { low: Some(from), high: oldest })
}

/// What a pass ends with that found such a range.
pub fn outlived(cursor: CursorType, lost: Window) -> Error {
    let low = lost.low.map_or_else(String::new, |low| cursor.format(low));
    let high = cursor.format(lost.high);
    Error::refused(format!(
        "what stood in the source from {low} to {high} has outlived its TTL before any pass looked at it"
    ))
    .hint(
        "the rows that are there leave all the same; restore the others from a backup, or accept the loss: the next pass goes on \
         and does not repeat this; let passes run more often than the TTL",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: CursorType = CursorType::DateTime64 { scale: 3 };
    const DAY: i64 = 86_400;
    /// The clock, seconds since 1970.
    const NOW: i64 = 1_763_632_800;

    /// Rows from `oldest` seconds on that live for a week.
    fn facts(oldest: i64) -> Facts {
        Facts {
            clock_micros: NOW * MICROS_PER_SECOND,
            newest: Some(NOW * 1000),
            oldest: Some(oldest * 1000),
            future: Some(0),
            expires_at_seconds: Some(oldest + 7 * DAY),
            lifetime_seconds: Some(7 * DAY),
        }
    }

    #[test]
    fn the_first_row_that_expires_counts() {
        assert_eq!(seconds_left(&facts(NOW - 6 * DAY)), Some(DAY));
        assert_eq!(seconds_left(&facts(NOW - 8 * DAY)), Some(-DAY));
        assert_eq!(seconds_left(&Facts { expires_at_seconds: None, ..facts(NOW) }), None);
    }

    #[test]
    fn less_than_the_margin_is_short() {
        let margin = Duration::from_secs(3600);
        let short: Vec<bool> = [3601, 3600, 3599, 0, -1].map(|left| is_short(left, margin)).into();
        assert_eq!(short, [false, false, true, true, true]);
        assert!(!is_short(0, Duration::ZERO) && is_short(-1, Duration::ZERO), "what has expired is always short");
    }

    #[test]
    fn rows_are_lost_where_they_expired_before_a_pass_looked() {
        let lost_after = |days: i64, oldest: i64| lost(MILLIS, Some((NOW - days * DAY) * 1000), &facts(oldest));
        let range = Window { low: Some((NOW - 8 * DAY) * 1000), high: (NOW - DAY) * 1000 };
        assert_eq!(lost_after(8, NOW - DAY), Some(range));
        assert!(lost_after(7, NOW - DAY).is_some(), "a row expires in the very second that its time is over");
        assert_eq!(lost_after(6, NOW - DAY), None, "what was there then is there now");
        assert_eq!(lost_after(8, NOW - 8 * DAY), None, "nothing stands between");
        assert_eq!(lost_after(8, NOW - 9 * DAY), None, "the oldest row is older");
    }

    #[test]
    fn nothing_is_known_without_marker_rows_or_lifetime() {
        let stalled = Some((NOW - 30 * DAY) * 1000);
        assert!(lost(MILLIS, stalled, &facts(NOW)).is_some());
        assert_eq!(lost(MILLIS, None, &facts(NOW)), None);
        assert_eq!(lost(MILLIS, stalled, &Facts { oldest: None, ..facts(NOW) }), None);
        assert_eq!(lost(MILLIS, stalled, &Facts { lifetime_seconds: None, ..facts(NOW) }), None);
        assert_eq!(lost(CursorType::Date, Some(i64::MAX), &facts(NOW)), None, "a tick that is no instant");
    }

    #[test]
    fn the_error_names_the_range() {
        let error = outlived(CursorType::DateTime, Window { low: Some(0), high: 60 }).to_string();
        assert!(error.contains("1970-01-01T00:00:00Z to 1970-01-01T00:01:00Z"), "{error}");
    }
}
