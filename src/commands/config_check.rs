//! `config check`: says what the configuration means, and tries everything that a pass needs. It changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::init_tables::new_table;
use crate::chunk::Route;
use crate::cli::{ConfigCheck, Format};
use crate::config::{self, Backend, Config, Resolved, Secret, Table};
use crate::error::{Error, Kind, Result};
use crate::guard::lock_folder;
use crate::http::reach;
use crate::notify;
use crate::plan::{lower_bound, step};
use crate::report::{self, Access, Check, ConfigReport, GrantLine};
use crate::source::{Reads, Server, new_run_id};
use crate::state::{self, Records};
use crate::storage::{Storage, is_local, local_path, rights as storage_rights, try_folder};
use crate::target::{Catalog, Target};
use crate::watermark::Marker;

pub async fn execute(file: Option<PathBuf>, args: &ConfigCheck, format: Format) -> Result<u8> {
    let report = match config::find(file).and_then(load) {
        Err(error) => {
            ConfigReport { checks: vec![Check::new("configuration", "file", Err(&error))], ..ConfigReport::default() }
        }
        Ok((file, config, resolved)) => {
            let tables = format!("{} table(s)", config.tables.len());
            let mut report = ConfigReport {
                checks: vec![Check::new("configuration", file.display().to_string(), Ok(tables))],
                files: files(&file, &config, &resolved),
                uid: fs::metadata("/proc/self").ok().map(|process| process.uid()),
                file: Some(file),
                configuration: Some(resolved),
                ..ConfigReport::default()
            };
            if !args.offline {
                Checking { config: &config, report: &mut report }.all().await;
            }
            report
        }
    };
    report::print(&report, format);
    Ok(report.exit_code())
}

fn load(file: PathBuf) -> Result<(PathBuf, Config, Resolved)> {
    let (config, resolved) = Config::load_resolved(&file)?;
    Ok((std::path::absolute(&file).unwrap_or(file), config, resolved))
}

/// What the user that runs passes does with which files and folders.
fn files(file: &Path, config: &Config, resolved: &Resolved) -> Vec<Access> {
    let access = |path: &Path, needs| Access { path: path.to_owned(), needs };
    let beside = |path: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    let folder = |path: &Path| path.parent().unwrap_or(path).to_owned();
    let state = &config.state;
    let mut files = vec![access(file, "read")];
    files.extend(resolved.files().map(|file| access(file, "read")));
    let textfile = config.metrics.textfile.as_ref();
    files.extend(textfile.map(|file| access(&folder(file), "create and replace files; the collector: read")));
    let locks = "create files, read and write them";
    match &config.catalog.backend {
        Backend::Sqlite(catalog) => files.extend([
            access(catalog, "read and write; the same for all that read tables by the catalog"),
            access(&folder(catalog), "create and delete files: the catalog's journal"),
            access(&beside(catalog, ".locks"), locks),
        ]),
        Backend::Postgres(_) | Backend::Rest(_) => files.push(access(&beside(state, ".locks"), locks)),
    }
    files.extend(local_path(&config.catalog.warehouse).ok().map(|warehouse| {
        access(&warehouse, "create folders, create, read and delete files; readers of the tables: read")
    }));
    files.extend([
        access(state, "read and write"),
        access(&folder(state), "create and delete files: the cache's journal, and rows while they are compared"),
    ]);
    files
}

/// Engines that read other tables with the rights of the user, which a query tree does not show.
const READ_FURTHER_TABLES: [&str; 3] = ["Buffer", "Distributed", "Merge"];

/// The checks under way.
struct Checking<'a> {
    config: &'a Config,
    report: &'a mut ConfigReport,
}

impl Checking<'_> {
    async fn all(&mut self) {
        let clickhouse = &self.config.clickhouse;
        let server = Server::connect(clickhouse, &new_run_id()).await;
        let found = server.as_ref().map(|server| format!("{}, user `{}`", server.name(), clickhouse.user));
        self.push("clickhouse", &clickhouse.url, found);

        let catalog = self.catalog().await;
        let mut reads = Reads::default();
        let mut locations = vec![self.config.catalog.warehouse.clone()];
        for table in &self.config.tables {
            let target = match &catalog {
                Some(catalog) => {
                    let target = target(catalog, table).await;
                    let found = target.as_ref().map(|(_, marker)| describe(marker.as_ref()));
                    self.push("target", &table.target.to_string(), found);
                    locations.extend(target.iter().map(|(target, _)| target.metadata.location().to_owned()));
                    target.ok()
                }
                None => None,
            };
            if let Ok(server) = &server {
                let source = self.source(server, table, target).await;
                self.push("source", &table.source, source.as_ref().map(|(found, _)| found.clone()));
                reads.merge(match source {
                    Ok((_, reads)) => reads,
                    // For a user without grants: what to grant can be told all the same.
                    Err(_) => server.reads_unopened(&clickhouse.database, table).await.unwrap_or_default(),
                });
            }
        }
        self.folders(catalog.as_ref()).await;
        self.outlets().await;
        self.report.storage =
            storage_rights(&locations, self.config.catalog.storage.properties.get("s3.sse.key").map(String::as_str));
        if let Backend::Postgres(postgres) = &self.config.catalog.backend {
            self.report.catalog_grants = catalog_grants(&postgres.url);
        }
        if let Ok(server) = &server {
            self.grants(&reads, server.reads_of_sizes().await.unwrap_or_default());
        }
    }

    fn push(&mut self, check: &'static str, of: &str, result: Result<String, &Error>) {
        self.report.checks.push(Check::new(check, of, result));
    }

    /// Opens the catalog; `None` where there is none, and so no target.
    async fn catalog(&mut self) -> Option<Catalog> {
        let catalog = Catalog::open(self.config).await;
        let tried = match &catalog {
            Ok(catalog) => catalog.try_writing().await,
            Err(error) => Err(error.repeat()),
        };
        let name = self.config.catalog.backend.to_string();
        self.push("catalog", &name, tried.as_ref().map(|()| "can be written".to_owned()));
        catalog.ok()
    }

    /// All that a pass checks before it plans; what it found, and what passes read.
    async fn source(
        &mut self,
        server: &Server,
        table: &Table,
        target: Option<(Target, Option<Marker>)>,
    ) -> Result<(String, Reads)> {
        let database = &self.config.clickhouse.database;
        let (source, fields, marker) = match target {
            Some((target, marker)) => {
                let fields = target.partition_by()?;
                let route = Route::open(server, database, table, target, &Storage::of(self.config)).await?;
                route.check(marker.as_ref())?;
                (route.source, fields, marker)
            }
            None => {
                let source = server.open(database, table).await?;
                new_table(self.config, table, &source)?;
                (source, table.partition_by.clone(), None)
            }
        };
        let fields: Vec<_> = fields.into_iter().map(|by| source.partition_field(by)).collect::<Result<_>>()?;
        let cursor = source.cursor(&table.cursor)?;
        let step = step(table.window, cursor.kind)?;
        source.check_input(cursor.kind, step)?;
        source.check_grants(&cursor, &fields).await?;
        let offloaded_to = marker.as_ref().map(|marker| marker.offloaded_to);
        let low = lower_bound(marker.as_ref().map(|marker| marker.watermark), table.start_at, cursor.kind, step)?;
        source.facts(&cursor, low.max(offloaded_to)).await?;
        let engine = source.engine().split(['(', ' ']).next().unwrap_or_default();
        if READ_FURTHER_TABLES.contains(&engine) {
            let note = format!("`{}` is a {engine}: the tables behind it need grants of their own", table.source);
            self.report.notes.push(note);
        }
        let of_cursor = source.columns.iter().find(|column| column.name == cursor.name);
        let kind = of_cursor.map(|column| column.source_type.as_str()).unwrap_or_default();
        let found = format!("{} column(s), cursor `{}` {kind}", source.columns.len(), cursor.name);
        Ok((found, source.reads(&cursor, &fields).await?))
    }

    async fn folders(&mut self, opened: Option<&Catalog>) {
        let Config { catalog, state, metrics, .. } = self.config;
        let warehouse = &catalog.warehouse;
        if is_local(warehouse) {
            let tried = local_path(warehouse).and_then(|folder| tried(&folder));
            self.push("warehouse", warehouse, tried.as_ref().cloned());
        } else if let Some(opened) = opened.filter(|_| warehouse.contains("://")) {
            let tried = opened.storage().try_writing(warehouse).await.map(|()| "can be written".to_owned());
            self.push("warehouse", warehouse, tried.as_ref().cloned());
        }
        let folder = lock_folder(self.config);
        let (locks, name) = (tried(&folder), folder.display().to_string());
        self.push("locks", &name, locks.as_ref().cloned());
        let cache = state::try_cache(state).map(|()| "can be written".to_owned());
        self.push("state", &state.display().to_string(), cache.as_ref().cloned());
        if let Some(records) = &self.config.records {
            let tried = async { Records::connect(records, &new_run_id()).await?.check().await };
            let found = tried.await;
            self.push("records", &records.to_string(), found.as_ref().cloned());
        }
        if let Some(textfile) = &metrics.textfile {
            let folder = textfile.parent().unwrap_or(textfile);
            let tried = match folder.is_dir() {
                true => try_folder(folder).map(|()| "can be written".to_owned()),
                // Passes do not make it: nobody would read there.
                false => Err(Error::new(Kind::Config, format!("the folder {} does not exist", folder.display())).hint(
                    "it is node_exporter's --collector.textfile.directory; correct metrics.textfile, or create it",
                )),
            };
            self.push("metrics", &textfile.display().to_string(), tried.as_ref().cloned());
        }
    }

    /// Whom passes speak to. Nothing is sent: somebody would be woken.
    async fn outlets(&mut self) {
        let Config { metrics, notify, .. } = self.config;
        if let Some(url) = &metrics.otlp {
            let reached = reach(url, metrics.timeout).await.map(|()| "answers".to_owned());
            self.push("metrics", url, reached.as_ref().cloned());
        }
        if let Some(url) = notify.webhook.as_ref().map(Secret::expose) {
            let reached = reach(url, notify.timeout).await.map(|()| "answers, nothing was sent".to_owned());
            self.push("notify", "webhook", reached.as_ref().cloned());
        }
        if let Some(problem) = &notify.problem {
            let error =
                Error::new(Kind::Config, problem).hint("rows leave all the same, but nobody is told of troubles");
            self.push("notify", "webhook", Err(&error));
        }
        if let Some(program) = notify.command.first() {
            let found = notify::find_program(program).map(|path| format!("is {}, was not run", path.display()));
            self.push("notify", program, found.as_ref().cloned());
        }
    }

    fn grants(&mut self, reads: &Reads, sizes: Reads) {
        let config::ClickHouse { database, user, .. } = &self.config.clickhouse;
        let statements = |reads: &Reads, without: Option<&str>| -> Vec<GrantLine> {
            let grants = reads.grants(database).into_iter();
            grants
                .map(|grant| GrantLine { statement: grant.statement(user), without: without.map(str::to_owned) })
                .collect()
        };
        self.report.grants = statements(reads, None);
        self.report.grants.extend(statements(&sizes, Some("the sizes of first files are guessed")));
        let notes = reads
            .functions()
            .map(|name| format!("a query calls the table function {name}, which may need a grant of its own"));
        self.report.notes.extend(notes);
    }
}

/// What the user of a PostgreSQL catalog needs there.
fn catalog_grants(url: &str) -> Vec<GrantLine> {
    let url = url::Url::parse(url).ok();
    let user = url.as_ref().map(url::Url::username).filter(|user| !user.is_empty()).unwrap_or("USER");
    // A name as the URI has it may be percent-encoded; quoted, it is what it was, but for such characters.
    let is_plain = user.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
    let user = if is_plain { user.to_owned() } else { format!("\"{}\"", user.replace('"', "\"\"")) };
    let line = |statement: &str, without: Option<&str>| GrantLine {
        statement: format!("GRANT {statement} TO {user}"),
        without: without.map(str::to_owned),
    };
    vec![
        line("USAGE ON SCHEMA public", None),
        line("SELECT, INSERT, UPDATE ON iceberg_tables", None),
        line("INSERT ON iceberg_namespace_properties", None),
        line("CREATE ON SCHEMA public", Some("somebody else must make the two tables before the first init-tables")),
    ]
}

/// The target of a table, as far as passes have filled it.
async fn target(catalog: &Catalog, table: &Table) -> Result<(Target, Option<Marker>)> {
    let target = Target::load_existing(catalog, &table.target).await?;
    let marker = target.marker(catalog.file_io(), &table.target).await?;
    catalog.try_commit(&table.target).await?;
    catalog.storage().try_writing(target.metadata.location()).await?;
    Ok((target, marker))
}

/// That a folder takes files, or would once it exists.
fn tried(folder: &Path) -> Result<String> {
    try_folder(folder)?;
    let found = if folder.exists() { "can be written" } else { "does not exist yet, and can be made" };
    Ok(found.to_owned())
}

fn describe(marker: Option<&Marker>) -> String {
    match marker {
        None => "exists, nothing has left yet".to_owned(),
        Some(marker) => format!("watermark {}", marker.source.cursor.kind.format(marker.watermark)),
    }
}
