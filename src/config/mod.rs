//! `offload.toml`: raw TOML in, a validated [`Config`] out, all problems reported at once.
//!
//! Below this module nothing is optional or unchecked. Unknown keys are errors everywhere. Secrets never stand in the
//! file: it names an environment variable or a file.

mod lake;
mod outlets;
mod raw;
mod resolved;
mod rows;
mod secret;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};

pub use self::lake::{Auth, Backend, Catalog, Postgres, Records, Rest, Storage};
use self::raw::RawFile;
pub use self::resolved::Resolved;
pub use self::secret::{Secret, hide};
use self::validate::{Problems, validate};
use crate::error::{Classify, Error, Kind, Result};
use crate::partition::PartitionBy;
use crate::schema::SchemaEvolution;

/// Looked for in this order where neither `-c` nor the environment names a file.
pub const DEFAULT_FILES: [&str; 2] = ["offload.toml", "/etc/k2-offload/offload.toml"];

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The warm tier.
    pub clickhouse: ClickHouse,
    /// The cold tier.
    pub catalog: Catalog,
    /// SQLite file of the state cache.
    pub state: PathBuf,
    /// How long passes are remembered there.
    pub history_keep: Duration,
    /// Where the state of tables is told to others beside it.
    pub records: Option<Records>,
    /// Where metrics go.
    pub metrics: Metrics,
    /// Who is told of troubles.
    pub notify: Notify,
    /// Tables of a layer that are offloaded side by side.
    pub parallel_tables: usize,
    /// No chunk is started later than this after the start of a pass.
    pub pass_deadline: Duration,
    /// Lag above which a table is not well; [`Config::lag_limit`] where none is given.
    pub max_lag: Option<Duration>,
    /// Bytes that the images of rows may take while they are compared.
    pub merge_memory: u64,
    /// The tables, in the order of their layers' first appearance.
    pub tables: Vec<Table>,
}

/// Where ClickHouse is and who we are there.
#[derive(Debug, Clone)]
pub struct ClickHouse {
    /// HTTP URL of the server.
    pub url: String,
    /// Database of the sources.
    pub database: String,
    /// User name.
    pub user: String,
    /// Password, empty for none.
    pub password: Secret,
    /// Certificates to trust beside the system's, for https.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for the first answer of the server.
    pub connect_timeout: Duration,
    /// Longest silence of a running query.
    pub idle_timeout: Duration,
    /// `max_execution_time` of each query.
    pub query_timeout: Duration,
    /// Further settings of each query.
    pub settings: BTreeMap<String, String>,
}

/// Where metrics go after each pass and audit.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// File for the textfile collector of Prometheus' node_exporter.
    pub textfile: Option<PathBuf>,
    /// URL of an OpenTelemetry collector that takes OTLP as JSON over HTTP.
    pub otlp: Option<String>,
    /// Longest wait for that collector.
    pub timeout: Duration,
}

impl Metrics {
    /// Whether they go anywhere.
    pub fn is_wanted(&self) -> bool {
        self.textfile.is_some() || self.otlp.is_some()
    }
}

impl Notify {
    /// Whether there is anybody to tell.
    pub fn is_wanted(&self) -> bool {
        self.webhook.is_some() || self.problem.is_some() || !self.command.is_empty()
    }
}

/// Who is told of troubles, each once.
#[derive(Debug, Clone, Default)]
pub struct Notify {
    /// Program and arguments; the document comes on its standard input.
    pub command: Vec<String>,
    /// URL that the document is posted to.
    pub webhook: Option<Secret>,
    /// Variables with secrets, which are not the command's.
    pub secrets: Vec<String>,
    /// Why there is no such URL although one is wanted. Rows leave all the same.
    pub problem: Option<String>,
    /// Longest wait for either.
    pub timeout: Duration,
}

/// A source and its target.
#[derive(Debug, Clone)]
pub struct Table {
    /// Table in [`ClickHouse::database`], or the name of `query`.
    pub source: String,
    /// The SELECT that stands for a table, with [`LOW`] and [`HIGH`] where its bounds belong.
    pub query: Option<String>,
    /// The rows that the query is computed from.
    pub input: Option<Input>,
    /// What a marker calls the source (protocol.md P15).
    pub source_id: String,
    /// The Iceberg table.
    pub target: TableName,
    /// Layer, for `--layer` and for the order of a pass.
    pub layer: String,
    /// Column that orders the source in time.
    pub cursor: String,
    /// Which columns leave.
    pub columns: Columns,
    /// Types that columns shall have in the target instead of those of the type table.
    pub types: BTreeMap<String, String>,
    /// Columns whose values name a row; none where rows have no name.
    pub key: Vec<String>,
    /// Of rows with one key the one with the largest value here leaves.
    pub version_column: Option<String>,
    /// Whether the source is read with FINAL.
    pub is_final: bool,
    /// SQL over the source's columns: rows for which it holds do not leave.
    pub reject_where: Option<String>,
    /// Rows are aggregates of ranges of this length: bounds are multiples of it since 1970 in UTC (protocol.md P11).
    pub window: Option<Duration>,
    /// A commit takes rows of one multiple of it since 1970 in UTC.
    pub chunk_span: Option<Duration>,
    /// Lower bound of the first window.
    pub start_at: Option<DateTime<Utc>>,
    /// How far behind the source's clock a window ends.
    pub settle_delay: Duration,
    /// About how many rows one commit takes at most.
    pub chunk_rows: u64,
    /// Partition fields of a new target.
    pub partition_by: Vec<PartitionBy>,
    /// How the rows of a file are sorted.
    pub sort_by: Vec<SortBy>,
    /// About how many bytes a data file should have at most.
    pub target_file_size: u64,
    /// Rows that the source's TTL deletes sooner than this, and that have not left, are worth a warning.
    pub ttl_margin: Duration,
    /// How far below the watermark passes look for rows that came late.
    pub late_lookback: Duration,
    /// Whether the target follows a source whose columns change.
    pub schema_evolution: SchemaEvolution,
    /// Parquet compression.
    pub compression: Compression,
    /// About how many rows a row group of a data file should have.
    pub row_group_size: u64,
    /// Columns whose Bloom filters are kept in data files.
    pub bloom_filter: Vec<String>,
}

/// What tells whether rows of a query changed since they left (protocol.md P23).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// A SELECT of the rows, which may have [`LOW`] and [`HIGH`].
    pub select: String,
    /// Its time column: rows of a window make the query's rows there.
    pub cursor: String,
}

/// Stands in a query for the inclusive lower bound of the cursor.
pub const LOW: &str = "{low}";
/// Stands in a query for the exclusive upper bound of the cursor.
pub const HIGH: &str = "{high}";

/// Which columns of a source leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// All but these.
    Except(Vec<String>),
    /// These.
    Only(Vec<String>),
}

/// A column that rows are sorted by. Nulls come first where values ascend, and last where they descend: Iceberg's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortBy {
    /// The column.
    pub column: String,
    /// Largest first.
    pub descending: bool,
}

impl SortBy {
    /// Parses `column`, `column asc` and `column desc`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (column, descending) = match text.rsplit_once(char::is_whitespace) {
            Some((column, order)) if order.eq_ignore_ascii_case("desc") => (column, true),
            Some((column, order)) if order.eq_ignore_ascii_case("asc") => (column, false),
            _ => (text, false),
        };
        let column = column.trim_end();
        (!column.is_empty()).then(|| Self { column: column.to_owned(), descending })
    }
}

/// Namespace and name of an Iceberg table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Dotted namespace.
    pub namespace: String,
    /// Name within it.
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

/// Codec and level of Parquet pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// `zstd`, `lz4`, `snappy`, `gzip` or `none`: ClickHouse's and Iceberg's common names.
    pub codec: String,
    /// Level, where the codec has one.
    pub level: Option<u8>,
}

/// Finds the configuration file: `given`, else the first of [`DEFAULT_FILES`] that exists.
pub fn find(given: Option<PathBuf>) -> Result<PathBuf> {
    given.or_else(|| DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.is_file())).ok_or_else(|| {
        Error::new(Kind::Config, format!("no configuration file: looked for {}", DEFAULT_FILES.join(" and ")))
            .hint("name one with -c FILE or K2_OFFLOAD_CONFIG")
    })
}

/// The freshness that K2 asks for, where the configuration names none.
const DEFAULT_MAX_LAG: Duration = Duration::from_secs(30 * 60);

impl Config {
    /// Lag above which `status` and notifications call a table late.
    pub fn lag_limit(&self) -> Duration {
        self.max_lag.unwrap_or(DEFAULT_MAX_LAG)
    }

    /// Reads and validates a file. Relative paths in it are relative to its folder.
    pub fn load(file: &Path) -> Result<Self> {
        Self::load_resolved(file).map(|(config, _)| config)
    }

    /// The same, and the file as it counts.
    pub fn load_resolved(file: &Path) -> Result<(Self, Resolved)> {
        let text = std::fs::read_to_string(file).or_error(Kind::Config, format!("read {}", file.display()))?;
        let folder = std::path::absolute(file).or_error(Kind::Config, format!("locate {}", file.display()))?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        Self::parse_resolved(&text, folder, |name| std::env::var(name).ok())
            .map_err(|e| e.context(format!("configuration file {}", file.display())))
    }

    /// Validates `text`; `environment` looks up the variables that it names.
    pub fn parse(text: &str, folder: &Path, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Self::parse_resolved(text, folder, environment).map(|(config, _)| config)
    }

    fn parse_resolved(
        text: &str,
        folder: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, Resolved)> {
        let raw: RawFile = toml::from_str(text).map_err(|mut e| {
            let line =
                e.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1);
            // Without its input, the error names the key instead of quoting the line, which may hold a misplaced secret.
            e.set_input(None);
            let message = e.to_string().trim_end().replace('\n', " ");
            Error::new(Kind::Config, format!("line {line}: {message}"))
                .hint("the shipped offload.toml lists every key that this version knows")
        })?;
        let mut problems = Problems::default();
        let config = validate(raw.clone(), folder, environment, &mut problems);
        if !problems.0.is_empty() {
            return Err(Error::new(Kind::Config, problems.0.join("; ")));
        }
        let resolved = Resolved::new(raw, folder, &config);
        Ok((config, resolved))
    }
}

#[cfg(test)]
mod tests {
    use super::lake::tests::REST;
    use super::*;

    pub(super) const MINIMAL: &str = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\n";

    pub(super) fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/etc/x"), |name| (name == "PW").then(|| "s3cret".to_owned()))
    }

    #[test]
    fn the_shipped_file_is_valid_and_says_the_defaults() {
        let shipped = include_str!("../../offload.toml");
        parse(shipped).unwrap();
        let uncommented: String = shipped
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let all = parse(&uncommented).unwrap();
        let default = parse(MINIMAL).unwrap();
        assert_eq!(format!("{:?}", all.clickhouse), format!("{:?}", default.clickhouse));
        assert_eq!(format!("{:?}", all.catalog), format!("{:?}", default.catalog));
        assert_eq!((all.state, all.pass_deadline), (default.state, default.pass_deadline));
        assert_eq!(all.history_keep, default.history_keep);
        assert_eq!(format!("{:?}", all.metrics), format!("{:?}", default.metrics));
        assert_eq!(format!("{:?}", all.notify), format!("{:?}", default.notify));
        assert_eq!(all.merge_memory, default.merge_memory);
        assert_eq!(all.tables[0].settle_delay, default.tables[0].settle_delay);
        assert_eq!(all.tables[0].ttl_margin, default.tables[0].ttl_margin);
        assert_eq!(all.tables[0].late_lookback, default.tables[0].late_lookback);
        assert_eq!(all.tables[0].compression, default.tables[0].compression);
        let file = |table: &Table| (table.row_group_size, table.bloom_filter.clone());
        assert_eq!(file(&all.tables[0]), file(&default.tables[0]));
        assert_eq!(default.tables[0].schema_evolution, SchemaEvolution::AddColumns);
        assert_eq!(
            (all.tables[0].chunk_rows, all.parallel_tables),
            (default.tables[0].chunk_rows, default.parallel_tables)
        );
    }

    /// serde lists the keys that it knows when it meets another.
    #[test]
    fn the_shipped_file_names_every_key() {
        let shipped = include_str!("../../offload.toml");
        for section in ["[clickhouse]", "[catalog]", "[state]", "[metrics]", "[notify]", "[defaults]", "[[table]]"] {
            let error = parse(&format!("{section}\nnothing = 1\n")).unwrap_err().to_string();
            let (_, known) = error.split_once("expected").unwrap();
            let (known, _) = known.rsplit_once(" in ").unwrap();
            let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            assert!(!keys.is_empty(), "{error}");
            for key in keys {
                let named = |line: &str| line.trim_start_matches(['#', '=', ' ']).starts_with(&format!("{key} = "));
                assert!(shipped.lines().any(named), "{section} {key}");
            }
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let text = "[clickhouse]\nurl = 'ftp://x'\npassword_env = 'NOPE'\n[defaults]\nsettle_delay = 'soon'\ntarget_file_size = 'big'\n[[table]]\n\
                    source = ''\ntarget = 'x'\ncursor = 'ts'\npartition_by = ['bucket(4, a)']\ncompression = 'zip'\nstart_at = 'x'\nschema_evolution = 'thaw'\n";
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        for key in
            ["clickhouse.url", "NOPE", "settle_delay", "`big`", "source", "target", "bucket", "zip", "start_at", "thaw"]
        {
            assert!(error.to_string().contains(key), "{key} is missing in: {error}");
        }
    }

    #[test]
    fn unknown_keys_and_twin_targets_are_refused() {
        assert!(parse(&format!("[clickhouse]\nurll = 'x'\n{MINIMAL}")).unwrap_err().to_string().contains("urll"));
        assert!(parse(&format!("{MINIMAL}chunkrows = 5\n")).unwrap_err().to_string().contains("chunkrows"));
        assert!(parse(&format!("{MINIMAL}chunk_rows = 0\n")).unwrap_err().to_string().contains("chunk_rows"));
        assert!(parse(&format!("{MINIMAL}{MINIMAL}")).unwrap_err().to_string().contains("already the target"));
        assert!(parse("").unwrap_err().to_string().contains("[[table]]"));
    }

    #[test]
    fn values_of_a_wrong_type_are_told_with_their_key() {
        for (text, key) in [
            ("[defaults]\nchunk_rows = 'many'\n", "defaults.chunk_rows"),
            ("[clickhouse]\nurl = 5\n", "clickhouse.url"),
            ("[[table]]\nsource = 'a'\n", "`target` in `table`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(key) && !error.contains('\n'), "{key} is missing in: {error}");
        }
    }

    #[test]
    fn misplaced_secrets_are_not_repeated() {
        for text in [
            "[clickhouse]\npassword = 's3cret'\n",
            "[clickhouse]\nurl = 'htp://u:s3cret@h'\n",
            "[clickhouse]\npassword_env = s3cret\n",
            "[clickhouse]\npassword_env = 's3cret'\n",
            "[catalog]\nuri = 'postgresql://u:s3cret@h/catalog'\n",
            "[catalog]\nwarehouse = 's3://u:s3cret@h/bucket'\n",
        ] {
            let error = parse(&format!("{text}{MINIMAL}")).unwrap_err();
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert!(parse("[clickhouse]\npassword = 's3cret'\n").unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn secrets_never_show() {
        let config = parse(&format!("[clickhouse]\npassword_env = 'PW'\n{MINIMAL}")).unwrap();
        assert_eq!(config.clickhouse.password.expose(), "s3cret");
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    /// Of the shipped file and of a short one: what is printed as in effect means the same, from wherever it is read, and names every key.
    #[test]
    fn a_resolved_configuration_says_all_that_counts() {
        let shipped = include_str!("../../offload.toml");
        let environment = |name: &str| (name == "PW").then(|| "s3cret".to_owned());
        let further = "[clickhouse]\npassword_env = 'PW'\nsettings = { max_threads = 2 }\n[defaults]\nlate_lookback = '2h'\nmax_lag = '1h'\n";
        let lake = format!("{REST}[state]\nuri = 'http://k2@h/state'\npassword_env = 'PW'\n{MINIMAL}");
        let types = format!("{further}{MINIMAL}types = {{ n = 'string' }}\nlate_lookback = '1h'\n");
        for text in [shipped, MINIMAL, &types, &lake] {
            let (config, resolved) = Config::parse_resolved(text, Path::new("/etc/x"), environment).unwrap();
            let printed = resolved.toml();
            let again = Config::parse(&printed, Path::new("/elsewhere"), environment).unwrap();
            assert_eq!(format!("{again:?}"), format!("{config:?}"), "{printed}");
            assert!(!printed.contains("s3cret"), "{printed}");
            let catalog =
                if *text == lake { "ca_file = \"/etc/x/ca.pem\"" } else { "uri = \"sqlite:////etc/x/catalog.db\"" };
            for key in ["idle_timeout", catalog, "path = \"/etc/x/state.db\"", "row_group_size", "source_id"] {
                assert!(printed.contains(key), "{key} is missing in: {printed}");
            }
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse(MINIMAL).unwrap();
        assert!(matches!(config.catalog.backend, Backend::Sqlite(path) if path == Path::new("/etc/x/catalog.db")));
        assert_eq!(config.catalog.warehouse, "file:///etc/x/warehouse");
        assert_eq!(config.state, Path::new("/etc/x/state.db"));
        let absolute = format!("[catalog]\nuri = 'sqlite:////var/c.db'\nwarehouse = 'file:///data/'\n{MINIMAL}");
        let config = parse(&absolute).unwrap();
        assert_eq!(config.catalog.warehouse, "file:///data");
        assert!(matches!(config.catalog.backend, Backend::Sqlite(path) if path == Path::new("/var/c.db")));
    }

    #[test]
    fn layers_go_in_the_order_of_their_first_appearance() {
        let table = |source: &str, layer: &str| {
            format!("[[table]]\nsource = '{source}'\ntarget = 'cold.{source}'\ncursor = 'ts'\nlayer = '{layer}'\n")
        };
        let text = [table("a", "silver"), table("b", "bronze"), table("c", "silver")].concat();
        let sources: Vec<_> = parse(&text).unwrap().tables.into_iter().map(|t| t.source).collect();
        assert_eq!(sources, ["a", "c", "b"]);
    }
}
