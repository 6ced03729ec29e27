//! `audit --repair`: the merge of passes, of what an audit found missing.

use super::{Options, Pass, millis};
use crate::chunk::Route;
use crate::config::{Config, Table};
use crate::error::Result;
use crate::late::whole;
use crate::plan::Window;
use crate::progress::Progress;
use crate::report::RunTable;
use crate::source::Server;
use crate::state::{Finished, State};
use crate::stop::Stop;
use crate::target::{Catalog, Target, markers};
use crate::telemetry::Telemetry;
use crate::watermark::Mode;

/// Adds what the target of a table does not hold of windows that have left (`audit --repair`): the merge of passes, under their guard, and as long as
/// it takes.
pub async fn repair(
    config: &Config,
    (catalog, server): (&Catalog, &Server),
    table: &Table,
    windows: &[Window],
    state: &State,
    stop: &Stop,
    telemetry: &Telemetry,
) -> Result<RunTable> {
    let pass = Pass { deadline: None, ..Pass::new(config, Options::default(), state, stop, telemetry) };
    let _guard = stop.or(pass.locks.acquire(&table.target)).await?;
    let mut progress = Progress::default();
    let repair = async || Box::pin(pass.repair(table, server, catalog, windows, &mut progress)).await;
    let repaired = pass.retry(repair).await;
    let report = progress.report(table, repaired.as_ref().err(), millis(pass.started));
    let (run_id, started_at) = (&pass.run_id, &pass.started_at);
    state.repaired(&Finished { run_id, started_at, report: &report, checked_to: None });
    repaired.map(|()| report)
}

impl Pass<'_> {
    /// One try of a repair.
    async fn repair(
        &self,
        table: &Table,
        server: &Server,
        catalog: &Catalog,
        windows: &[Window],
        progress: &mut Progress,
    ) -> Result<()> {
        let target = self.stop.or(Target::load_existing(catalog, &table.target)).await?;
        let marker = self.stop.or(target.marker(catalog.file_io(), &table.target)).await?;
        let database = &self.config.clickhouse.database;
        let mut route = self.stop.or(Route::open(server, database, table, target, catalog.storage())).await?;
        route.check(marker.as_ref())?;
        let Some(newest) = &marker else { return Ok(()) };
        let windows = whole(&markers(&route.target.metadata)?, windows, newest.watermark, &newest.skipped);
        route.check_merge(marker.as_ref(), windows.first().and_then(|window| window.low))?;
        progress.seen(route.cursor().kind, marker, None);
        for window in windows {
            self.window(catalog, &mut route, (window, Mode::Merge), self.deadline, progress).await?;
        }
        Ok(())
    }
}
