//! The target: a catalog that swaps metadata locations, real Iceberg metadata behind them, and the rows of each snapshot in memory.
//!
//! What a version of the table says of our commits is asked of [`history`] itself, once per version.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::LazyLock;

use iceberg::TableCreation;
use iceberg::spec::{
    MAIN_BRANCH, Operation, SchemaRef, Snapshot, SnapshotReference, SnapshotRetention, Summary, TableMetadata,
    TableMetadataBuildResult, TableMetadataBuilder,
};

use super::source::{Identity, Row};
use crate::plan::Window;
use crate::schema::{Column, iceberg_schema};
use crate::target::history::{self, Found};
use crate::target::{MAX_SNAPSHOT_AGE_MS, Target, live_records};
use crate::watermark::Marker;

/// When all begins: long before this machine's time, which iceberg takes for changes that make no snapshot.
const START_MS: i64 = 1_000_000_000_000;

/// The table's schema, and the one with the further column.
pub static SCHEMAS: LazyLock<[SchemaRef; 2]> = LazyLock::new(|| {
    let columns = ["ts", "partition", "value", "extra"].map(|name| Column::map(name, "DateTime", None).unwrap());
    [&columns[..3], &columns].map(|columns| iceberg_schema(columns).unwrap().into())
});

static EMPTY: LazyLock<TableMetadata> = LazyLock::new(|| {
    let creation = TableCreation::builder()
        .name("t".into())
        .location("file:///w/t".into())
        .schema(SCHEMAS[0].as_ref().clone())
        .build();
    let metadata = TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata;
    let mut json = serde_json::to_value(metadata).unwrap();
    json["last-updated-ms"] = START_MS.into();
    serde_json::from_value(json).unwrap()
});

/// A data file.
#[derive(Debug)]
pub struct Stored {
    pub id: u64,
    /// As many columns as it physically holds.
    pub columns: u8,
    /// Whether others wrote it: then columns that came later are null, and not absent, in rows that are older.
    pub is_rewritten: bool,
    pub rows: Vec<Row>,
}

/// What a snapshot refers to.
#[derive(Debug, Default)]
pub struct Contents {
    /// Stands for manifests and manifest list.
    pub list: u64,
    pub files: Vec<Rc<Stored>>,
}

impl Contents {
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.files.iter().map(|file| file.id).chain([self.list])
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.files.iter().flat_map(|file| &file.rows)
    }
}

/// The table under one metadata location.
#[derive(Debug)]
pub struct Version {
    pub target: Target,
    pub contents: Rc<Contents>,
    found: OnceCell<Found>,
    markers: OnceCell<Vec<Marker>>,
}

impl Version {
    pub fn metadata(&self) -> &TableMetadata {
        &self.target.metadata
    }

    pub fn found(&self) -> &Found {
        self.found.get_or_init(|| history::find(self.metadata()).unwrap())
    }

    /// Our markers, newest first.
    pub fn markers(&self) -> &[Marker] {
        self.markers.get_or_init(|| history::markers(self.metadata()).unwrap())
    }

    /// Rows of a window.
    pub fn held(&self, window: Window) -> u64 {
        self.contents.rows().filter(|row| window.contains(row.tick)).count() as u64
    }

    pub fn counts(&self) -> BTreeMap<Identity, u64> {
        let mut counts = BTreeMap::new();
        self.contents.rows().for_each(|row| *counts.entry(row.identity()).or_default() += 1);
        counts
    }

    pub fn columns(&self) -> u8 {
        u8::try_from(self.metadata().current_schema().as_struct().fields().len()).unwrap()
    }
}

/// A request to swap that nobody waits for any more.
pub struct InFlight {
    pub expected: String,
    pub new: Rc<Version>,
}

pub struct Table {
    pub current: Rc<Version>,
    pub in_flight: Vec<InFlight>,
    contents: BTreeMap<i64, Rc<Contents>>,
    pub deleted: BTreeSet<u64>,
    last_id: u64,
    /// The hosts' clock, milliseconds since 1970.
    pub now_ms: i64,
}

impl Table {
    /// An empty one whose snapshots expire at an age.
    pub fn new(max_age_ms: Option<i64>) -> Self {
        let mut metadata = EMPTY.clone();
        if let Some(age) = max_age_ms {
            let properties = HashMap::from([(MAX_SNAPSHOT_AGE_MS.0.to_owned(), age.to_string())]);
            let builder = metadata.into_builder(None).set_properties(properties).unwrap();
            metadata = builder.build().unwrap().metadata;
        }
        let target = Target { metadata, metadata_location: "0".into(), version: None, credentials_end: None };
        let current = Version { target, contents: Rc::default(), found: OnceCell::new(), markers: OnceCell::new() };
        Self {
            current: Rc::new(current),
            in_flight: Vec::new(),
            contents: BTreeMap::new(),
            deleted: BTreeSet::new(),
            last_id: 0,
            now_ms: START_MS,
        }
    }

    /// Never used before: of a file, a snapshot or a location.
    pub fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A file of ours.
    pub fn store(&mut self, columns: u8, rows: Vec<Row>) -> Rc<Stored> {
        let rows = rows.into_iter().map(|row| Row { extra: row.extra.filter(|_| columns == 4), ..row }).collect();
        Rc::new(Stored { id: self.new_id(), columns, is_rewritten: false, rows })
    }

    /// A file of others, with all columns that the table has.
    pub fn rewrite(&mut self, rows: Vec<Row>) -> Rc<Stored> {
        Rc::new(Stored { id: self.new_id(), columns: self.current.columns(), is_rewritten: true, rows })
    }

    /// Writes manifests: what a snapshot will refer to.
    pub fn remember(&mut self, snapshot_id: i64, contents: Contents) {
        self.contents.insert(snapshot_id, Rc::new(contents));
    }

    /// Writes metadata.
    pub fn version(&mut self, metadata: TableMetadata) -> Rc<Version> {
        let metadata_location = self.new_id().to_string();
        let contents = metadata.current_snapshot_id().map(|id| self.contents[&id].clone()).unwrap_or_default();
        let target = Target { metadata, metadata_location, version: None, credentials_end: None };
        Rc::new(Version { target, contents, found: OnceCell::new(), markers: OnceCell::new() })
    }

    /// What the catalog does.
    pub fn swap(&mut self, expected: &str, new: &Rc<Version>) -> bool {
        let is_expected = self.current.target.metadata_location == expected;
        if is_expected {
            self.current = new.clone();
        }
        is_expected
    }

    /// Somebody else's change of the table, at once.
    fn change(&mut self, change: impl FnOnce(TableMetadataBuilder) -> iceberg::Result<TableMetadataBuildResult>) {
        let metadata = change(self.current.metadata().clone().into_builder(None)).unwrap().metadata;
        self.current = self.version(metadata);
    }

    /// Somebody else's snapshot with these files in place of all.
    pub fn replace(&mut self, files: Vec<Rc<Stored>>) {
        let id = i64::try_from(self.new_id()).unwrap();
        let list = self.new_id();
        let rows: usize = files.iter().map(|file| file.rows.len()).sum();
        let metadata = self.current.metadata();
        let snapshot = Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(metadata.next_sequence_number())
            .with_timestamp_ms(self.now_ms.max(metadata.last_updated_ms()))
            .with_manifest_list(list.to_string())
            .with_summary(Summary {
                operation: Operation::Overwrite,
                additional_properties: HashMap::from([("total-records".to_owned(), rows.to_string())]),
            })
            .with_schema_id(metadata.current_schema_id())
            .build();
        self.remember(id, Contents { list, files });
        self.change(|builder| builder.set_branch_snapshot(snapshot, MAIN_BRANCH)?.build());
    }

    /// Somebody makes another snapshot current.
    pub fn set_current(&mut self, snapshot_id: i64) {
        let main = SnapshotReference::new(snapshot_id, SnapshotRetention::branch(None, None, None));
        self.change(|builder| builder.set_ref(MAIN_BRANCH, main)?.build());
    }

    /// Somebody expires snapshots.
    pub fn expire(&mut self, ids: &[i64]) {
        self.change(|builder| builder.remove_snapshots(ids).build());
    }

    /// A file, or list, that is deleted although a snapshot of the table refers to it.
    pub fn broken(&self) -> Option<u64> {
        let snapshots = self.current.metadata().snapshots();
        let mut contents = snapshots.map(|snapshot| &self.contents[&snapshot.snapshot_id()]);
        let is_deleted = |id: &u64| self.deleted.contains(id);
        contents.find_map(|contents| contents.ids().find(is_deleted))
    }

    /// Rows as the newest snapshot's summary says must be those that it refers to.
    pub fn says_its_rows(&self) -> bool {
        let rows = self.current.contents.rows().count() as u64;
        live_records(self.current.metadata()).is_none_or(|live| live == rows)
    }
}
