//! The store over one command: connected when it is first needed; what fails is warned of once, and after that nothing is asked any more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::{Record, Records};
use crate::config;
use crate::error::{Error, Result};
use crate::postgres::Client;
use crate::report::RunTable;
use crate::state::{State, TableState};

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    config: Option<config::Records>,
    run_id: String,
    /// What each target is called there.
    names: BTreeMap<String, String>,
    records: OnceCell<Option<Records>>,
    has_failed: Cell<bool>,
    /// What was told before this command, where it was asked for.
    before: RefCell<BTreeMap<String, Record>>,
}

impl Ledger {
    /// Nothing is asked yet.
    pub fn new(config: &config::Config, run_id: &str) -> Rc<Self> {
        Rc::new(Self {
            config: config.records.clone(),
            run_id: run_id.to_owned(),
            names: names(config),
            records: OnceCell::new(),
            has_failed: Cell::new(false),
            before: RefCell::default(),
        })
    }

    /// Warns, once.
    pub fn failed(&self, error: &Error) {
        if !self.has_failed.replace(true) {
            tracing::warn!(%error, hint = error.hint_text(), "the records of [state] uri cannot be used, going on without them");
        }
    }

    async fn records(&self) -> Option<&Records> {
        let config = self.config.as_ref().filter(|_| !self.has_failed.get())?;
        let connected = self.records.get_or_init(async || {
            Records::connect(config, &self.run_id).await.inspect_err(|error| self.failed(error)).ok()
        });
        connected.await.as_ref()
    }

    /// The connection, where it is one to PostgreSQL.
    pub async fn postgres(&self) -> Option<Arc<Client>> {
        self.records().await?.client()
    }

    /// Passes over `targets` are about to begin. The cache of a host that knows nothing of one of them learns what was told of it.
    pub async fn begin(&self, state: &State, targets: &[String]) {
        if self.config.is_none() {
            return;
        }
        let known = state.tables();
        if targets.iter().any(|target| !known.contains_key(target)) {
            let told = self.told().await;
            state.seed(
                told.iter().filter(|record| targets.contains(&record.target) && !known.contains_key(&record.target)),
            );
            self.before.replace(told.into_iter().map(|record| (record.target.clone(), record)).collect());
        }
        let records: Vec<Record> = targets.iter().map(|target| Record::running(target)).collect();
        self.publish(&records).await;
    }

    /// Passes have ended.
    pub async fn end(&self, state: &State, reports: &[RunTable]) {
        if self.config.is_none() {
            return;
        }
        let known = state.tables();
        let records: Vec<Record> = {
            let before = self.before.borrow();
            let record =
                |report: &RunTable| Record::finished(report, known.get(&report.target), before.get(&report.target));
            reports.iter().filter_map(record).collect()
        };
        self.publish(&records).await;
    }

    /// Adds to what this host remembers of `targets` what was told of those that it knows nothing of.
    pub async fn complete(&self, remembered: &mut BTreeMap<String, TableState>, targets: &[String]) {
        if self.config.is_none() || targets.iter().all(|target| remembered.contains_key(target)) {
            return;
        }
        for record in self.told().await {
            remembered.entry(record.target.clone()).or_insert_with(|| record.remembered());
        }
    }

    /// Tells of tables.
    pub async fn publish(&self, records: &[Record]) {
        let named = records.iter().map(|record| {
            let name = self.names.get(&record.target).unwrap_or(&record.target).clone();
            Record { target: name, ..record.clone() }
        });
        let named: Vec<Record> = named.collect();
        if let Some(store) = self.records().await {
            self.warned(store.publish(&named).await);
        }
    }

    async fn told(&self) -> Vec<Record> {
        let told = match self.records().await {
            Some(store) => self.warned(store.fetch().await).unwrap_or_default(),
            None => Vec::new(),
        };
        // Rows of others bear other names.
        let target = |name: &str| self.names.iter().find(|(_, own)| *own == name).map(|(target, _)| target.clone());
        told.into_iter().filter_map(|record| Some(Record { target: target(&record.target)?, ..record })).collect()
    }

    fn warned<T>(&self, result: Result<T>) -> Option<T> {
        result.inspect_err(|error| self.failed(error)).ok()
    }
}

/// The platform calls a table by its source; a source that several targets have does not tell them apart.
fn names(config: &config::Config) -> BTreeMap<String, String> {
    let twins = |source: &String| config.tables.iter().filter(|table| table.source == *source).count();
    let name =
        |table: &config::Table| if twins(&table.source) == 1 { table.source.clone() } else { table.target.to_string() };
    config.tables.iter().map(|table| (table.target.to_string(), name(table))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn tables_are_called_by_their_sources_where_these_tell_them_apart() {
        let table = |source: &str, target: &str| {
            format!("[[table]]\nsource = '{source}'\ntarget = 'c.{target}'\ncursor = 'ts'\n")
        };
        let text = [table("a", "x"), table("b", "y"), table("b", "z")].concat();
        let names = names(&Config::parse(&text, Path::new("/"), |_| None).unwrap());
        let names: Vec<_> = names.iter().map(|(target, name)| (target.as_str(), name.as_str())).collect();
        assert_eq!(names, [("c.x", "a"), ("c.y", "c.y"), ("c.z", "c.z")]);
    }
}
