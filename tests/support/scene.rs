//! Bad calls on the lake: a table whose next rows wait while something is wrong, and that must come to no harm by it.

use std::fs;

use super::lake::variable;
use super::{Case, Lake, Output, Place, TRADES, finish};

/// Secrets of the lake: none may show, whatever happens.
pub fn secrets() -> Vec<String> {
    let names = [
        "K2_TEST_S3_SECRET_KEY",
        "K2_TEST_REST_CLIENT_SECRET",
        "K2_TEST_MOTO_SECRET_KEY",
        "K2_TEST_MOTO_SESSION_TOKEN",
    ];
    let known = names.map(variable);
    known.into_iter().chain(["vended/secret+key=", "lake-password", "canary"].map(str::to_owned)).collect()
}

/// A case whose first day has left, while the second one waits.
pub struct Scene {
    pub case: Case,
    /// The configuration with which passes succeed.
    pub good: String,
}

impl Scene {
    pub fn new(place: Place, name: &str) -> Self {
        Self::with(place, name, |_| {})
    }

    pub fn with(place: Place, name: &str, prepare: impl FnOnce(&mut Lake)) -> Self {
        let mut case = Case::at(place, name);
        prepare(case.lake.as_mut().unwrap());
        case.bronze("trades");
        case.config(TRADES);
        case.init_tables();
        case.trades("trades", "2024-03-09 23:50:00", 200);
        case.pass();
        case.trades("trades", "2024-03-10 23:59:00", 200);
        let good = fs::read_to_string(case.path("offload.toml")).unwrap();
        Self { case, good }
    }

    /// Changes the configuration, each `(from, to)` once at least.
    pub fn configure(&self, changes: &[(&str, &str)]) {
        let change = |text: String, (from, to): &(&str, &str)| {
            assert!(text.contains(from), "`{from}` is not in\n{text}");
            text.replace(from, to)
        };
        fs::write(self.case.path("offload.toml"), changes.iter().fold(self.good.clone(), change)).unwrap();
    }

    /// Runs with these variables; an empty one is not set.
    pub fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = self.case.command(arguments);
        for (name, value) in variables {
            match value.is_empty() {
                true => command.env_remove(name),
                false => command.env(name, value),
            };
        }
        let secrets = secrets();
        finish(&mut command).keeps_back(&secrets.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A pass must fail like this, and change nothing.
    #[track_caller]
    pub fn fails(&self, what: &str, variables: &[(&str, &str)], exit: i32, says: &[&str]) {
        let before = self.case.target("trades").state();
        let output = self.run(&["-v", "run"], variables);
        assert_eq!(output.code, Some(exit), "{what}\n{}", output.all());
        output.says(says).says(&["\nhint: "]);
        assert_eq!(self.case.target("trades").state(), before, "{what}");
    }

    /// As it should be again: the next pass brings what waits.
    #[track_caller]
    pub fn recovers(&self) {
        fs::write(self.case.path("offload.toml"), &self.good).unwrap();
        self.recovers_as_it_is(&[]);
    }

    #[track_caller]
    pub fn recovers_as_it_is(&self, variables: &[(&str, &str)]) {
        self.run(&["run"], variables).expect(0);
        self.case.target("trades").holds_all("trades");
        self.run(&["audit", "--checksum"], variables).expect(0);
        fs::write(self.case.path("offload.toml"), &self.good).unwrap();
        self.case.target("trades").has_only_read_files("recovered");
    }
}
