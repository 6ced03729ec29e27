//! `audit --orphans`: files of ours that nothing refers to; with `--repair` they are deleted.

use std::time::SystemTime;

use iceberg::io::FileIO;

use super::select;
use crate::cli::{Audit, Format};
use crate::config::{Config, Table};
use crate::error::{Error, Kind, Result};
use crate::guard::Guard;
use crate::report::{self, ErrorReport, OrphanFile, OrphanReport, OrphanTable};
use crate::source::new_run_id;
use crate::storage::{delete_own_file, local_file_io};
use crate::target::{Catalog, Target};

pub async fn execute(config: &Config, args: &Audit, format: Format) -> Result<u8> {
    if args.checksum || args.since.is_some() || args.until.is_some() || args.last.is_some() {
        return Err(Error::new(Kind::Config, "--orphans looks at files, not at rows")
            .hint("of the other options only --table and --repair go with it"));
    }
    let file_io = local_file_io();
    let mut tables = Vec::new();
    for table in select(config, &args.tables)? {
        let mut entry = OrphanTable { target: table.target.to_string(), orphans: Vec::new(), error: None };
        if let Err(error) = look(config, table, args.repair, &file_io, &mut entry.orphans).await {
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
    config: &Config,
    table: &Table,
    repair: bool,
    file_io: &FileIO,
    found: &mut Vec<OrphanFile>,
) -> Result<()> {
    let catalog = Catalog::open(&config.catalog)?;
    let _guard = match repair {
        true => Some(Guard::acquire(&config.catalog, &table.target, &new_run_id())?),
        false => None,
    };
    let target = Target::load_existing(&catalog, file_io, &table.target).await?;
    for orphan in target.orphans(file_io, SystemTime::now()).await? {
        let path = orphan.path.to_string_lossy().into_owned();
        if repair {
            delete_own_file(&path)?;
        }
        found.push(OrphanFile { path, bytes: orphan.bytes, modified_at: orphan.modified.into(), removed: repair });
    }
    Ok(())
}
