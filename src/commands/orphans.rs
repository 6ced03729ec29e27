//! `audit --orphans`: files of ours that nothing refers to; with `--repair` they are deleted.

use std::time::SystemTime;

use super::select;
use crate::cli::{Audit, Format};
use crate::config::{Config, Table};
use crate::error::{Error, Kind, Result};
use crate::guard::Locks;
use crate::report::{self, ErrorReport, OrphanFile, OrphanReport, OrphanTable};
use crate::source::new_run_id;
use crate::state::Ledger;
use crate::target::{Catalog, Target};

pub async fn execute(config: &Config, args: &Audit, format: Format) -> Result<u8> {
    if args.checksum || args.since.is_some() || args.until.is_some() || args.last.is_some() {
        return Err(Error::new(Kind::Config, "--orphans looks at files, not at rows")
            .hint("of the other options only --table and --repair go with it"));
    }
    let catalog = Catalog::open(config).await?;
    let run_id = new_run_id();
    let locks = Locks::new(config, &run_id, &Ledger::new(config, &run_id));
    let mut tables = Vec::new();
    for table in select(config, &args.tables)? {
        let mut entry = OrphanTable { target: table.target.to_string(), orphans: Vec::new(), error: None };
        if let Err(error) = look(&locks, &catalog, table, args.repair, &mut entry.orphans).await {
            entry.error = Some(ErrorReport::from(&error));
        }
        tables.push(entry);
    }
    let report = OrphanReport { tables };
    report::print(&report, format);
    Ok(report.exit_code())
}

/// Lists the orphans of a table; deletes them where that is asked for.
async fn look(
    locks: &Locks<'_>,
    catalog: &Catalog,
    table: &Table,
    repair: bool,
    found: &mut Vec<OrphanFile>,
) -> Result<()> {
    let _guard = match repair {
        true => Some(locks.acquire(&table.target).await?),
        false => None,
    };
    let target = Target::load_existing(catalog, &table.target).await?;
    for orphan in target.orphans(catalog.storage(), SystemTime::now()).await? {
        let path = orphan.location;
        if repair {
            catalog.storage().delete(&path).await?;
        }
        found.push(OrphanFile { path, bytes: orphan.bytes, modified_at: orphan.modified.into(), removed: repair });
    }
    Ok(())
}
