//! An Iceberg table as others see it: PyIceberg, DuckDB and ClickHouse, and its files on disk, where S3 keeps its objects too.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::server::{readers_python, repository};
use super::{Case, Place, files_below};

/// Where tests/readers/iceberg.py answers, until this process ends.
static READERS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let name = format!("k2-offload-readers-{}", uuid::Uuid::new_v4());
    let script = repository().join("tests/readers/iceberg.py");
    let mut command = Command::new(readers_python());
    let mut readers =
        command.arg(script).args(["serve", &name]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(readers.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    // It ends when its stdin does.
    std::mem::forget(readers);
    SocketAddr::from_abstract_name(name).unwrap()
});

/// An Iceberg table of a case.
pub struct Target<'a> {
    pub case: &'a Case,
    pub namespace: String,
    pub table: String,
}

impl Target<'_> {
    /// Runs a command of tests/readers/iceberg.py on this table.
    pub fn ask(&self, command: &str, arguments: Value) -> Value {
        let sqlite = self.case.path("catalog.db");
        let catalog = match &self.case.lake {
            Some(lake) => lake.for_readers(sqlite),
            None => json!(sqlite),
        };
        let mut all = json!({"catalog": catalog, "namespace": self.namespace, "table": self.table});
        for (name, value) in arguments.as_object().unwrap() {
            all[name] = value.clone();
        }
        let mut stream = UnixStream::connect_addr(&READERS).unwrap();
        stream.write_all(json!([command, all]).to_string().as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer: Value = serde_json::from_reader(stream).unwrap_or_else(|e| panic!("{command} {all}: {e}"));
        assert!(answer["error"].is_null(), "{command} {all} failed\n{}", answer["error"].as_str().unwrap());
        answer["result"].take()
    }

    /// The target must hold the rows of `source`, each as often as there, in the eyes of all three readers.
    pub fn holds_for_all_readers(&self, source: &str) {
        self.holds(&["pyiceberg", "duckdb", "clickhouse"], source, "1");
    }

    /// The target must hold the rows of `source`, in the eyes of PyIceberg.
    pub fn holds_all(&self, source: &str) {
        self.holds(&["pyiceberg"], source, "1");
    }

    /// The target must hold the rows of `source` for which `filter` is true, and no others.
    pub fn holds(&self, readers: &[&str], source: &str, filter: &str) {
        for result in self.compare(readers, source, filter) {
            assert_eq!(result["equal"], true, "{}: {result:#}", self.table);
        }
    }

    /// The target must hold the rows of `source` and `foreign` more.
    pub fn holds_with_foreign_rows(&self, source: &str, foreign: u64) {
        for result in self.compare(&["pyiceberg"], source, "1") {
            assert_eq!((&result["missing_rows"], &result["extra_rows"]), (&json!(0), &json!(foreign)), "{result:#}");
        }
    }

    fn compare(&self, readers: &[&str], source: &str, filter: &str) -> Vec<Value> {
        let source = json!({"url": self.case.url, "database": self.case.database, "table": source});
        let results = self.ask("compare", json!({"source": source, "readers": readers, "where": filter}));
        assert_eq!(results.as_array().unwrap().len(), readers.len());
        results.as_array().unwrap().clone()
    }

    /// Rows in the eyes of PyIceberg.
    pub fn count(&self) -> u64 {
        self.ask("count", json!({})).as_u64().unwrap()
    }

    /// Rows that PyIceberg finds with each filter, having pruned what bounds and partitions let it.
    pub fn count_where(&self, filters: &[&str]) -> Vec<u64> {
        serde_json::from_value(self.ask("count_where", json!({"filters": filters}))).unwrap()
    }

    /// Snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<Value> {
        self.ask("snapshots", json!({})).as_array().unwrap().clone()
    }

    /// Answer of ClickHouse to a query that ends with FROM, read from the metadata that the catalog names.
    pub fn icebergs(&self, query: &str) -> String {
        self.icebergs_of(query, "1")
    }

    /// The same of the rows with a filter.
    pub fn icebergs_of(&self, query: &str, filter: &str) -> String {
        let location = self.metadata_location();
        let mut parts = location.rmatch_indices('/').map(|(at, _)| at);
        let (_, end) = (parts.next(), parts.next().unwrap());
        let (table, metadata) = (&location[..end], &location[end + 1..]);
        let function = match &self.case.lake {
            Some(lake) => lake.clickhouse(table),
            None => format!("icebergLocal('{}'", table.strip_prefix("file://").unwrap()),
        };
        let settings = format!("SETTINGS iceberg_metadata_file_path = '{metadata}'");
        self.case.sql(&format!("{query} {function}, {settings}) WHERE {filter}"))
    }

    /// Rows that ClickHouse, DuckDB and PyIceberg find by the table's folder, without its catalog.
    pub fn count_by_folder(&self) -> Vec<u64> {
        let location = self.metadata_location();
        let table = location.rsplitn(3, '/').nth(2).unwrap();
        let function = match &self.case.lake {
            Some(lake) => lake.clickhouse(table),
            None => format!("icebergLocal('{}'", table.strip_prefix("file://").unwrap()),
        };
        let query = format!("SELECT count() FROM {function}, SETTINGS iceberg_use_version_hint = 1)");
        let others: Vec<u64> = serde_json::from_value(self.ask("count_by_folder", json!({}))).unwrap();
        [self.case.sql(&query).parse().unwrap()].into_iter().chain(others).collect()
    }

    /// Rows that ClickHouse finds with a filter.
    pub fn icebergs_where(&self, filter: &str) -> u64 {
        self.icebergs_of("SELECT count() FROM", filter).parse().unwrap()
    }

    /// The folder of the table, in whichever warehouse.
    pub fn folder(&self) -> PathBuf {
        self.metadata_file().ancestors().nth(2).unwrap().to_owned()
    }

    /// What `version-hint.text` says.
    pub fn hint(&self) -> String {
        fs::read_to_string(self.folder().join("metadata/version-hint.text")).unwrap()
    }

    /// The hint names the file that the catalog names.
    pub fn hint_is_right(&self, what: &str) {
        let file = self.metadata_file();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert_eq!(self.hint(), name.strip_suffix(".metadata.json").unwrap(), "{what}");
    }

    /// Paths below data/ on disk, whether a snapshot refers to them or not.
    pub fn files_on_disk(&self) -> Vec<PathBuf> {
        files_below(&self.folder().join("data"))
    }

    /// Every data file on disk must be one that PyIceberg reads, and the other way round.
    pub fn has_no_other_files(&self) {
        let known = self.ask("data_files", json!({}));
        let mut known: Vec<PathBuf> =
            known.as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap().into()).collect();
        known.sort();
        assert_eq!(self.files_on_disk(), known, "files on disk, files of the table");
    }

    /// Nothing in S3 may be begun and neither finished nor given up.
    pub fn has_no_uploads(&self, what: &str) {
        assert_eq!(self.ask("uploads", json!({})), json!([]), "{what}");
    }

    /// Every data file on disk must be one that ClickHouse reads.
    pub fn has_only_read_files(&self, what: &str) {
        let read = self.icebergs("SELECT uniqExact(_path) FROM");
        assert_eq!(self.files_on_disk().len().to_string(), read, "files on disk, files of the table: {what}");
    }

    /// The metadata file that the catalog names, and every file of the table: the same again where a pass changed nothing and left nothing.
    pub fn state(&self) -> (PathBuf, Vec<PathBuf>) {
        (self.metadata_file(), files_below(&self.folder()))
    }

    /// The metadata file that the catalog names.
    pub fn metadata_file(&self) -> PathBuf {
        self.case.file(&self.metadata_location())
    }

    /// Its location.
    pub fn metadata_location(&self) -> String {
        let lake = self.case.lake.as_ref();
        let elsewhere = lake.and_then(|lake| lake.metadata_location(&self.namespace, &self.table));
        elsewhere.unwrap_or_else(|| {
            let query = "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = ?1 AND table_name = ?2";
            self.catalog().query_row(query, [&self.namespace, &self.table], |row| row.get(0)).unwrap()
        })
    }

    /// The newest metadata file that a pass wrote upon `base` and that the catalog need not name.
    pub fn staged(&self, base: &Path) -> PathBuf {
        let newer =
            |file: &PathBuf| file.extension().is_some_and(|e| e == "json") && file.file_name() > base.file_name();
        files_below(&self.folder().join("metadata")).into_iter().rfind(newer).unwrap()
    }

    /// Swaps in the metadata file `new` if the catalog still names `base`; whether it did.
    pub fn swaps(&self, base: &Path, new: &Path) -> bool {
        let (base, new) = (self.case.location(base), self.case.location(new));
        if self.case.place() == Place::Postgres {
            return self.case.lake.as_ref().unwrap().swaps(&base, &new);
        }
        let swap = "UPDATE iceberg_tables SET metadata_location = ?1, previous_metadata_location = ?2 WHERE metadata_location = ?2";
        self.catalog().execute(swap, [new, base]).unwrap() == 1
    }

    /// Does what the lost request of a pass would have done, had it come through only now; whether it could.
    pub fn lands_late(&self, base: &Path) -> bool {
        self.swaps(base, &self.staged(base))
    }

    /// The marker in the table properties, from the metadata file itself.
    pub fn marker(&self) -> Value {
        let metadata: Value = serde_json::from_slice(&fs::read(self.metadata_file()).unwrap()).unwrap();
        let text = metadata["properties"]["k2-offload.marker"].as_str();
        text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
    }

    /// The catalog, where it is a SQLite file.
    pub fn catalog(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.case.path("catalog.db")).unwrap()
    }
}
