//! The read side of the target: what a table is and how far it was filled.

mod catalog;
mod files;
mod hint;
pub(crate) mod history;
mod orphans;
mod postgres;
mod register;
mod rest;
mod rows;
mod scan;
mod sort;
mod sqlite;

use std::collections::HashMap;
use std::{io, iter};

use chrono::{DateTime, Utc};
use iceberg::io::FileIO;
use iceberg::spec::{
    FormatVersion, ManifestFile, ManifestList, Schema, Snapshot, TableMetadata, TableMetadataBuilder,
    UnboundPartitionField, UnboundPartitionSpec,
};
use iceberg::{ErrorKind, TableCreation};

pub use self::catalog::{Catalog, Change, Moved, Swap, SwapError};
pub use self::files::DataFiles;
pub use self::history::{
    Fate, Rollback, ancestors, committed_ms, deleted_by_others, fate, live_records, markers, references,
};
pub use self::orphans::MIN_AGE;
pub use self::postgres::Postgres as PostgresCatalog;
pub use self::register::{Relation, check_newest, check_vacant, locate, version_of};
pub use self::rest::is_past;
pub use self::rows::{RowFile, Rows, no_key_column, read_rows};
pub use self::scan::ticks;
use crate::config::{Table as TableConfig, TableName};
use crate::error::{Error, Kind, Result};
use crate::partition::{Grain, PartitionBy};
use crate::plan::Window;
use crate::schema::{Column, iceberg_schema};
use crate::storage::judge;
use crate::watermark::Marker;

/// Iceberg's property for the age in milliseconds at which snapshots may go, and its value where a table does not say: 7 days.
pub const MAX_SNAPSHOT_AGE_MS: (&str, i64) = ("history.expire.max-snapshot-age-ms", 7 * 24 * 60 * 60 * 1000);

/// Fewer rows than this say little of how many bytes a row takes.
const MEASURED_ROWS: u64 = 100_000;

/// How far our commits have filled a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not at all, and nobody else has.
    Empty,
    /// As this marker says.
    Filled(Box<Marker>),
    /// Our newest commit is gone.
    RolledBack(Box<Rollback>),
    /// Others have, and we have not.
    Foreign,
}

impl Standing {
    /// Where history was cut above our newest commit (P16): it is gone if the target holds fewer rows of its window than it left there.
    pub fn of_cut(marker: Marker, held: u64) -> Self {
        match held < marker.rows {
            true => Self::RolledBack(Box::new(Rollback { lost: marker, left: None })),
            false => Self::Filled(Box::new(marker)),
        }
    }
}

/// A table as the catalog names it now.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its metadata.
    pub metadata: TableMetadata,
    /// Where the metadata was read from.
    pub metadata_location: String,
    /// What a REST catalog calls this version of it, to ask whether there is another one by now.
    pub version: Option<String>,
    /// When what it lends for the table's files ends, where it says so.
    pub credentials_end: Option<DateTime<Utc>>,
}

impl Target {
    /// Loads a table, `None` where the catalog has no such table.
    pub async fn load(catalog: &Catalog, name: &TableName) -> Result<Option<Self>> {
        catalog.load(name, None).await
    }

    /// Loads a table that must exist.
    pub async fn load_existing(catalog: &Catalog, name: &TableName) -> Result<Self> {
        Self::load(catalog, name).await?.ok_or_else(|| gone(name))
    }

    /// Loads the table again; metadata that is still the same is not read again.
    pub async fn reload(&self, catalog: &Catalog, name: &TableName) -> Result<Self> {
        catalog.load(name, Some(self)).await?.ok_or_else(|| gone(name))
    }

    /// Our newest marker, `None` before the first commit; refuses a rollback, and a table that others filled.
    pub async fn marker(&self, file_io: &FileIO, name: &TableName) -> Result<Option<Marker>> {
        match self.standing(file_io, name).await? {
            Standing::Empty => Ok(None),
            Standing::Filled(marker) => Ok(Some(*marker)),
            Standing::RolledBack(rollback) => Err(rollback.refuse()),
            Standing::Foreign => Err(history::refuse_foreign()),
        }
    }

    /// How far our commits have filled the table.
    pub async fn standing(&self, file_io: &FileIO, name: &TableName) -> Result<Standing> {
        Ok(match history::find(&self.metadata)? {
            history::Found::None => Standing::Empty,
            history::Found::Marker(marker) => Standing::Filled(Box::new(marker)),
            history::Found::RolledBack(rollback) => Standing::RolledBack(rollback),
            history::Found::Foreign => Standing::Foreign,
            // P16: history was cut, so only the rows can tell whether our newest commit is still there.
            history::Found::Cut(marker) => {
                let (cursor, window) = (&marker.source.cursor, Window { low: marker.low, high: marker.high });
                let days = Box::pin(self.histogram(file_io, name, cursor, window, cursor.kind.ticks_per_day())).await?;
                Standing::of_cut(marker, days.iter().map(|day| day.rows).sum())
            }
        })
    }

    /// Bytes and rows of the table's data files, as its newest snapshot says; `None` where it does not say, or where they are so few that
    /// footers would count more than rows.
    pub fn files_size(&self) -> Option<(u64, u64)> {
        let summary = &self.metadata.current_snapshot()?.summary().additional_properties;
        let number = |key| summary.get(key)?.parse::<u64>().ok().filter(|number| *number > 0);
        let (bytes, rows) = (number("total-files-size")?, number("total-records")?);
        (rows >= MEASURED_ROWS).then_some((bytes, rows))
    }

    /// The fields of the table's partition spec; refuses transforms that this version does not write.
    pub fn partition_by(&self) -> Result<Vec<PartitionBy>> {
        let schema = self.metadata.current_schema();
        let fields = self.metadata.default_partition_spec().fields().iter().map(|field| {
            let column = schema.name_by_field_id(field.source_id);
            let by = Grain::of(field.transform)
                .zip(column)
                .map(|(grain, column)| PartitionBy { grain, column: column.to_owned() });
            by.ok_or_else(|| {
                Error::refused(format!("the target is partitioned by {} (`{}`)", field.transform, field.name))
                    .hint("this version writes year, month, day, hour and identity")
            })
        });
        fields.collect()
    }

    /// How the table's partitions, which are followed, differ from those that the configuration gives to a new table.
    pub fn partition_difference(&self, config: &TableConfig) -> Result<Option<String>> {
        let name = |fields: &[PartitionBy]| {
            let fields: Vec<String> = fields.iter().map(PartitionBy::to_string).collect();
            if fields.is_empty() { "nothing".to_owned() } else { fields.join(", ") }
        };
        let fields = self.partition_by()?;
        Ok((fields != config.partition_by).then(|| {
            format!(
                "the target is partitioned by {}, the configuration says {}; the target's partitions are followed",
                name(&fields),
                name(&config.partition_by)
            )
        }))
    }

    /// Refuses table formats that this version does not write.
    pub fn check_format(&self) -> Result<()> {
        if self.metadata.format_version() == FormatVersion::V2 {
            return Ok(());
        }
        Err(Error::refused(format!("the target has Iceberg format {}", self.metadata.format_version()))
            .hint("this version writes format v2"))
    }
}

fn gone(name: &TableName) -> Error {
    Error::refused(format!("the target `{name}` does not exist"))
        .hint("run `k2-offload init-tables` first; if it was there before, see who dropped it, or where its catalog is")
}

/// What a new table will be.
#[derive(Debug)]
pub struct NewTable {
    metadata: TableMetadata,
}

impl NewTable {
    /// Builds the metadata of a table for these source columns.
    pub fn build(config: &TableConfig, columns: &[Column], warehouse: &str) -> Result<Self> {
        let schema = iceberg_schema(columns)?;
        let spec = partition_spec(&config.partition_by, &schema)?;
        let order = sort::sort_order(&config.sort_by, &schema)?;
        let mut properties = HashMap::from([
            ("write.format.default".to_owned(), "parquet".to_owned()),
            ("write.target-file-size-bytes".to_owned(), config.target_file_size.to_string()),
            // Rows, as PyIceberg has it; the size in bytes of others is no limit of ours.
            ("write.parquet.row-group-limit".to_owned(), config.row_group_size.to_string()),
            ("write.metadata.metrics.default".to_owned(), "full".to_owned()),
            // 96 passes a day would leave as many metadata files, each as large as the last.
            ("write.metadata.delete-after-commit.enabled".to_owned(), "true".to_owned()),
            ("write.metadata.previous-versions-max".to_owned(), "100".to_owned()),
            (MAX_SNAPSHOT_AGE_MS.0.to_owned(), MAX_SNAPSHOT_AGE_MS.1.to_string()),
            ("write.parquet.compression-codec".to_owned(), iceberg_codec(&config.compression.codec).to_owned()),
        ]);
        if let Some(level) = config.compression.level {
            properties.insert("write.parquet.compression-level".to_owned(), level.to_string());
        }
        let filter = |column| (format!("write.parquet.bloom-filter-enabled.column.{column}"), "true".to_owned());
        properties.extend(config.bloom_filter.iter().map(filter));
        let creation = TableCreation::builder()
            .name(config.target.name.clone())
            .location(format!("{warehouse}/{}/{}", folder(&config.target.namespace), folder(&config.target.name)))
            .schema(schema)
            .partition_spec(spec)
            .sort_order(order)
            .properties(properties)
            .build();
        let built = TableMetadataBuilder::from_table_creation(creation)
            .and_then(TableMetadataBuilder::build)
            .map_err(|e| classify(e, format!("plan the table `{}`", config.target)))?;
        Ok(Self { metadata: built.metadata })
    }

    /// Where it will be, where that is for us to say.
    pub fn location(&self) -> &str {
        self.metadata.location()
    }

    /// What it will be.
    pub fn metadata(&self) -> &TableMetadata {
        &self.metadata
    }
}

/// The manifests of a snapshot.
pub async fn manifests_of(
    snapshot: &Snapshot,
    metadata: &TableMetadata,
    file_io: &FileIO,
) -> iceberg::Result<Vec<ManifestFile>> {
    let bytes = file_io.new_input(snapshot.manifest_list())?.read().await?;
    let list = ManifestList::parse_with_version(&bytes, metadata.format_version())?;
    Ok(list.consume_entries().into_iter().collect())
}

/// A name as a folder that readers take as it is: PyIceberg cuts a location at `?` and `#` and drops control characters, ClickHouse takes `*`
/// and `{}` for patterns, DuckDB ends at `"`. No two names have the same folder.
fn folder(name: &str) -> String {
    let literal = |c: char| !c.is_control() && !"%?#*{}\"".contains(c);
    let encode = |c| if literal(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) };
    name.chars().map(encode).collect()
}

fn partition_spec(partition_by: &[PartitionBy], schema: &Schema) -> Result<UnboundPartitionSpec> {
    let fields = partition_by.iter().map(|by| {
        let field = schema.field_by_name(&by.column).ok_or_else(|| {
            Error::new(Kind::Config, format!("partition column `{}` is no column of the source", by.column))
        })?;
        let field = UnboundPartitionField::builder().source_id(field.id).name(partition_name(by, schema));
        Ok(field.transform(by.grain.transform()).build())
    });
    UnboundPartitionSpec::builder()
        .add_partition_fields(fields.collect::<Result<Vec<_>>>()?)
        .map(|builder| builder.build())
        .map_err(|e| classify(e, "plan the partitions".to_owned()))
}

/// A name for a partition field: as other writers choose it, but letters, digits and underscores only, as Avro has it in manifests (DuckDB
/// dies on others), and not the name of another column.
fn partition_name(by: &PartitionBy, schema: &Schema) -> String {
    let wanted = by.field_name();
    let mut name: String = wanted.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        name.insert(0, '_');
    }
    let own = |name: &str| by.grain == Grain::Identity && name == by.column;
    while schema.field_by_name(&name).is_some() && !own(&name) {
        name.push('_');
    }
    name
}

/// Iceberg's name of a codec.
fn iceberg_codec(codec: &str) -> &str {
    if codec == "none" { "uncompressed" } else { codec }
}

/// Metadata that the catalog names and that is gone does not come back by itself; other files can be gone because somebody expired them meanwhile.
fn unreadable(error: iceberg::Error, name: &TableName) -> Error {
    let context = format!("load table metadata of `{name}`");
    match io_cause(&error) {
        Some(cause) if cause.kind() == io::ErrorKind::NotFound => {
            Error::refused(format!("{}: {cause}", error.message())).context(context).hint(
                "restore the warehouse, or mount its disk; where the table was dropped, remove it from the catalog too",
            )
        }
        _ => classify(error, context),
    }
}

/// Sorts an error of iceberg by its kind and, where storage failed, by the cause that [`crate::storage`] kept.
pub fn classify(error: iceberg::Error, context: String) -> Error {
    let error = match (error.kind(), io_cause(&error)) {
        (ErrorKind::FeatureUnsupported, _) => Error::from_cause(Kind::Refused, error),
        // Manifests go when snapshots expire, and the next try finds others; a data file of the newest snapshot does not come back by itself.
        (_, Some(cause)) if cause.kind() == io::ErrorKind::NotFound && storage_message(&error).ends_with(".parquet") => {
            Error::refused(format!("{}: {cause}", storage_message(&error))).hint(
                "the target has lost a data file: restore it, or mount the warehouse; if somebody rewrote the table meanwhile, try again",
            )
        }
        (ErrorKind::Unexpected, Some(cause)) => {
            let (kind, hint) = judge(cause.kind());
            Error::new(kind, format!("{}: {cause}", error.message())).hint(hint)
        }
        _ if let Some(cause) = cause::<Error>(&error) => cause.repeat(),
        _ => Error::from_cause(Kind::Internal, error),
    };
    error.context(context)
}

/// What storage said, which names the file: readers of Parquet wrap it.
fn storage_message(error: &iceberg::Error) -> &str {
    let causes = iter::successors(std::error::Error::source(error), |cause| cause.source());
    let innermost = causes.filter_map(|cause| cause.downcast_ref::<iceberg::Error>()).last();
    innermost.unwrap_or(error).message()
}

/// Whether storage failed, so that nobody knows what the file says; one that is gone says nothing.
fn is_storages(error: &iceberg::Error) -> bool {
    error.kind() == ErrorKind::Unexpected && io_cause(error).is_none_or(|cause| cause.kind() != io::ErrorKind::NotFound)
}

fn io_cause(error: &iceberg::Error) -> Option<&io::Error> {
    cause(error)
}

fn cause<E: std::error::Error + 'static>(error: &iceberg::Error) -> Option<&E> {
    let mut causes = iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_fields_have_names_that_every_reader_takes() {
        let columns = ["ts", "ts_day", "1 a`", "exchange"].map(|name| Column::map(name, "Date", None).unwrap());
        let schema = iceberg_schema(&columns).unwrap();
        let name = |by: &str| partition_name(&PartitionBy::parse(by).unwrap(), &schema);
        assert_eq!(name("month(ts)"), "ts_month");
        assert_eq!(name("day(ts)"), "ts_day_");
        assert_eq!(name("day(1 a`)"), "_1_a__day");
        assert_eq!(name("exchange"), "exchange");
        assert_eq!(name("1 a`"), "_1_a_");
    }
}
