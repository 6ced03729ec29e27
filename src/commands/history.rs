//! `history`: past passes, from the state cache.

use chrono::{TimeDelta, Utc};

use super::select;
use crate::cli::{Format, History};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::report::{self, HistoryReport};
use crate::state::{Filter, State};

pub fn execute(config: &Config, args: &History, format: Format) -> Result<u8> {
    let targets = select(config, &args.tables)?.iter().map(|table| table.target.to_string()).collect();
    let last = args.last.and_then(|last| Utc::now().checked_sub_signed(TimeDelta::from_std(last).ok()?));
    let filter = Filter {
        targets,
        since: args.since.or(last).map(rfc3339),
        run_id: args.run.clone(),
        failed: args.failed,
        limit: args.limit,
    };
    let state = State::open_to_read(&config.state);
    let passes = state.history(&filter, args.chunks);
    if let Some(problem) = state.problem() {
        return Err(Error::new(Kind::Unavailable, problem)
            .hint("passes go on without it; see cron/RUNBOOK.md, or delete the file to begin anew"));
    }
    report::print(&HistoryReport { passes }, format);
    Ok(0)
}
