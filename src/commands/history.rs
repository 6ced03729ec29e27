//! `history`: past passes, from the state cache.

use chrono::Utc;

use super::select;
use crate::cli::{Format, History};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::report::{self, HistoryReport};
use crate::state::{Filter, State};

pub fn execute(config: &Config, args: &History, format: Format) -> Result<u8> {
    let targets = select(config, &args.tables)?.iter().map(|table| table.target.to_string()).collect();
    let last = args.last.map(|last| Utc::now() - last);
    let filter = Filter {
        targets,
        since: args.since.or(last).map(rfc3339),
        run_id: args.run.clone(),
        failed: args.failed,
        limit: args.limit,
    };
    let state = State::open(&config.state);
    let Some(passes) = state.history(&filter, args.chunks) else {
        let problem = state.problem().unwrap_or_else(|| "the state cache cannot be read".to_owned());
        return Err(Error::new(Kind::Unavailable, problem)
            .hint("passes go on without it; see cron/RUNBOOK.md, or delete the file to begin anew"));
    };
    report::print(&HistoryReport { passes }, format);
    Ok(0)
}
