//! `init-tables --register`: takes over a table that another catalog made, and its watermark.
//!
//! Two steps, each whole by itself: the catalog learns the table, as it is; then one commit without rows sets the watermark (P17). Crash
//! safety: after the first alone, passes refuse the table, because it holds rows and no marker; the same command goes on with the second.

use iceberg::spec::{NestedFieldRef, PrimitiveType, Type};

use super::init_tables::differences;
use super::reset::commit_reset;
use crate::cli::InitTables;
use crate::config::{Config, Table};
use crate::cursor::Tick;
use crate::error::{Error, Kind, Result};
use crate::failpoint::{self, Failpoint};
use crate::guard::Locks;
use crate::plan::{Window, check_bound, step};
use crate::report::{self, InitStatus, InitTable, ResetReport, ResetStatus, Seam};
use crate::reset::{Reset, Situation};
use crate::schema::{Evolution, evolve, fitting_types};
use crate::source::{Server, Source};
use crate::state::Ledger;
use crate::storage::Storage;
use crate::target::{Catalog, Moved, Relation, Standing, SwapError, Target, check_newest, locate};
use crate::watermark::SourceIdentity;

/// What the command line asks for.
pub struct Request<'a> {
    /// Path or URI of the metadata file, or the table's folder.
    pub metadata: &'a str,
    pub args: &'a InitTables,
    pub run_id: &'a str,
}

/// A table to be taken over, and where it goes.
struct Registration<'a> {
    config: &'a Config,
    table: &'a Table,
    request: &'a Request<'a>,
    source: Source<'a>,
    storage: Storage,
}

/// The watermark that is to be set.
struct Adoption {
    reset: Reset,
    report: ResetReport,
}

pub async fn register(config: &Config, table: &Table, server: &Server, request: &Request<'_>) -> Result<InitTable> {
    let source = server.open(&config.clickhouse.database, table).await?;
    let clock_micros = server.clock_micros().await?;
    let registration = Registration { config, table, request, source, storage: Storage::of(config) };
    Box::pin(registration.execute(clock_micros)).await
}

impl Registration<'_> {
    async fn execute(&self, clock_micros: i64) -> Result<InitTable> {
        let registered = match Catalog::open_if_exists(self.config).await? {
            Some(catalog) => Target::load(&catalog, &self.table.target).await?,
            None => None,
        };
        let (file, given) = match (locate(&self.storage, self.request.metadata).await, &registered) {
            (Ok(file), _) => {
                let given = Target::read_unregistered(&self.storage, &file).await?;
                (file, given)
            }
            (Err(error), Some(registered))
                if error.kind() == Kind::Config && registered.goes_on_from(self.request.metadata) =>
            {
                (String::new(), registered.clone())
            }
            (Err(error), _) => return Err(error),
        };
        let relation = registered.as_ref().map(|registered| given.relation_to(registered)).transpose()?;
        // What the catalog already holds may have gone on.
        let target = match (relation, &registered) {
            (Some(Relation::Known), Some(registered)) => registered,
            _ => {
                check_newest(&self.storage, &file, given.metadata.uuid()).await?;
                given.check_files(&self.storage).await?;
                &given
            }
        };
        self.check_fits(target)?;

        let standing = target.standing(self.storage.file_io(), &self.table.target).await?;
        let cursor = self.source.cursor(&self.table.cursor)?;
        let largest = match standing {
            Standing::Foreign => target.largest(self.storage.file_io(), &self.table.target, &cursor).await?,
            _ => None,
        };
        let now = cursor.kind.tick_at(clock_micros);
        let identity = SourceIdentity { id: self.table.source_id.clone(), uuid: self.source.uuid, cursor };
        let situation = Situation { standing: &standing, largest, source: &identity, now, deleted: false };
        let adoption = self.adoption(&situation).await?;
        let seam = match largest {
            Some(largest) => self.seam(target, &identity, largest).await?,
            None => None,
        };
        let next_step = match (&standing, &adoption, situation.filled_to()) {
            (Standing::Foreign, None, Some(from)) => Some(format!(
                "set its watermark, {} or later: k2-offload watermark reset --table {} --to TIMESTAMP",
                identity.cursor.kind.format(from),
                self.table.target
            )),
            _ => None,
        };
        let report = InitTable {
            source: self.table.source.clone(),
            target: self.table.target.to_string(),
            status: if relation == Some(Relation::Known) { InitStatus::Exists } else { InitStatus::Registered },
            location: Some(target.metadata.location().to_owned()),
            drift: differences(&self.evolution(target), self.table, target),
            adoption: adoption.as_ref().map(|adoption| adoption.report.clone()),
            seam,
            next_step,
            error: None,
        };
        let args = self.request.args;
        if args.dry_run {
            let status = if relation == Some(Relation::Known) { report.status } else { InitStatus::ToRegister };
            return Ok(InitTable { status, ..report });
        }
        let asks = adoption.as_ref().filter(|adoption| adoption.report.rows_skipped > 0 && !args.yes);
        if let Some(adoption) = asks
            && !report::confirm(&adoption.report)?
        {
            return Err(Error::new(Kind::Config, "the answer was no").hint("nothing was changed"));
        }
        let old = registered.as_ref().filter(|_| relation == Some(Relation::Newer));
        let from = (relation != Some(Relation::Known)).then_some((file.as_str(), old));
        let snapshot_id = self.change(target, from, adoption.as_ref()).await?;
        let adopted =
            adoption.map(|adoption| ResetReport { status: ResetStatus::Reset, snapshot_id, ..adoption.report });
        Ok(InitTable { adoption: adopted, ..report })
    }

    fn evolution(&self, target: &Target) -> Evolution {
        evolve(&self.source.columns, &target.metadata, self.table.schema_evolution)
    }

    /// Refuses what passes would refuse: better before the cut-over than after it.
    fn check_fits(&self, target: &Target) -> Result<()> {
        for by in target.partition_by()? {
            self.source.partition_field(by)?;
        }
        let schema = target.metadata.current_schema();
        let Err(error) = self.evolution(target).check() else { return Ok(()) };
        let types = fitting_types(&self.source.columns, schema);
        let without_zone = |field: &NestedFieldRef| *field.field_type == Type::Primitive(PrimitiveType::Timestamp);
        let hint = if !types.is_empty() {
            format!("add types = {{ {} }} to the configuration of this table", types.join(", "))
        } else if schema.as_struct().fields().iter().any(without_zone) {
            "times without a zone (Spark's TIMESTAMP_NTZ) are not written: copy the table into one with TIMESTAMP (CREATE TABLE .. AS SELECT), \
             and register that one"
                .to_owned()
        } else {
            error.hint_text().to_owned()
        };
        Err(error.hint(hint))
    }

    /// The watermark that the command line asks for, unless the table has got it already; `None` without one.
    async fn adoption(&self, situation: &Situation<'_>) -> Result<Option<Adoption>> {
        let kind = situation.source.cursor.kind;
        let Some(to) = self.request.args.watermark.map(|to| kind.tick_from(to.timestamp_micros())) else {
            return Ok(None);
        };
        check_bound(to, step(self.table.window, kind)?, kind)?;
        match situation.standing {
            Standing::Empty | Standing::Foreign => {}
            Standing::RolledBack(rollback) => return Err(rollback.refuse()),
            Standing::Filled(marker) => {
                marker.check_identity(situation.source)?;
                if to <= marker.watermark {
                    return Ok(None);
                }
                let message = format!("the table has a watermark of ours already, {}", kind.format(marker.watermark));
                return Err(Error::refused(message)
                    .hint("`k2-offload watermark reset` puts it forward, and says which rows that skips"));
            }
        }
        let reset = situation.plan(to)?;
        let rows_skipped = self.source.rows(&situation.source.cursor, reset.window()).await?;
        let report = ResetReport {
            source: self.table.source.clone(),
            target: self.table.target.to_string(),
            status: ResetStatus::Planned,
            from: situation.filled_to().map(|from| kind.format(from)),
            to: Some(kind.format(to)),
            rows_skipped,
            rows_compared: None,
            snapshot_id: None,
        };
        Ok(Some(Adoption { reset, report }))
    }

    /// The last tick of the table, where the source holds more rows of it: a predecessor that went by `> last timestamp` loses such ties.
    async fn seam(&self, target: &Target, source: &SourceIdentity, largest: Tick) -> Result<Option<Seam>> {
        let (cursor, window) = (&source.cursor, Window { low: Some(largest), high: largest.saturating_add(1) });
        let theirs = target.histogram(self.storage.file_io(), &self.table.target, cursor, window, 1).await?;
        let target_rows = theirs.iter().map(|bucket| bucket.rows).sum();
        let source_rows = self.source.rows(cursor, window).await?;
        if source_rows <= target_rows {
            return Ok(None);
        }
        let at = cursor.kind.format(largest);
        tracing::warn!(
            table = %self.table.target, at, source_rows, target_rows,
            "the source holds more rows of the table's last tick than the table; no pass will bring them, `k2-offload audit` shows them as missing"
        );
        Ok(Some(Seam { at, source_rows, target_rows }))
    }

    /// Both steps, as far as they are to be done; returns the snapshot of the second. `from` is the file that the catalog is to learn, and
    /// the version of which it knows.
    async fn change(
        &self,
        target: &Target,
        from: Option<(&str, Option<&Target>)>,
        adoption: Option<&Adoption>,
    ) -> Result<Option<i64>> {
        let catalog = Catalog::open_or_create(self.config).await?;
        failpoint::hit(Failpoint::Guard)?;
        let ledger = Ledger::new(self.config, self.request.run_id);
        let locks = Locks::new(self.config, self.request.run_id, &ledger);
        let _guard = locks.acquire(&self.table.target).await?;
        failpoint::hit(Failpoint::Target)?;
        if let Some((file, registered)) = from {
            if locate(&self.storage, self.request.metadata).await? != file {
                return Err(Error::refused("the table was written to while it was looked at")
                    .hint("stop what writes through its old catalog, then run this again"));
            }
            self.tell_catalog(&catalog, target, registered).await?;
        }
        failpoint::hit(Failpoint::Written)?;
        let Some(adoption) = adoption else { return Ok(None) };
        let skipped = adoption.report.rows_skipped;
        let snapshot_id =
            commit_reset(self.config, &ledger, &catalog, self.table, target, &adoption.reset, skipped).await?;
        failpoint::hit(Failpoint::Committed)?;
        Ok(Some(snapshot_id))
    }

    async fn tell_catalog(&self, catalog: &Catalog, target: &Target, registered: Option<&Target>) -> Result<()> {
        let (name, location) = (&self.table.target, target.metadata_location.as_str());
        let told = match registered {
            None => catalog.register(name, location).await,
            Some(old) => {
                let moved = catalog.replace(name, &old.metadata_location, location).await;
                moved.map(|moved| moved == Moved::Done)
            }
        };
        match told {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(Kind::Conflict, format!("somebody else has put `{name}` into the catalog"))),
            Err(SwapError::NotDone(error) | SwapError::Unknown(error)) => Err(error),
        }
    }
}
