//! Azure's and Google's stores, as far as they can be tried on this machine: Azurite, and for Google's XML API a moto that wants a service account's tokens.
//! On each a table is made, filled, audited and read by PyIceberg; who has no right there, or no bucket, is told so.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::lake::variable;
use support::{Case, Output, TRADES, finish, only_table};

/// One request sends them.
const FEW: u64 = 200;
/// As in tests/lake_faults.rs: not compressed, they are sent in blocks or parts of 8 MiB.
const TRADES_IN_PARTS: u64 = 210_000;
const PART: u64 = 8 << 20;

const CATALOG: &str = "catalog.db";
const ACCOUNT_KEY: &str = "AZURE_STORAGE_ACCOUNT_KEY";
const SAS_TOKEN: &str = "AZURE_STORAGE_SAS_TOKEN";

/// A warehouse in a store, and who we are there.
struct Cloud {
    case: Case,
    bucket: String,
    /// The location of a bucket is `scheme://BUCKEThost`.
    scheme: &'static str,
    host: String,
    properties: String,
    keys: Vec<(&'static str, String)>,
    /// What PyIceberg must know.
    reader: Value,
}

impl Cloud {
    fn azure(name: &str, key: &'static str, value: &str) -> Self {
        let [url, account] = ["K2_TEST_AZURE_URL", "K2_TEST_AZURE_ACCOUNT"].map(variable);
        let authority = url.split('/').nth(2).unwrap();
        let reader = json!({
            "adls.account_name": account, "adls.account_key": variable("K2_TEST_AZURE_KEY"),
            "adls.blob_storage_authority": authority, "adls.blob_storage_scheme": "http",
            "adls.dfs_storage_authority": authority, "adls.dfs_storage_scheme": "http",
        });
        let (host, properties) = (format!("@{account}.dfs.core.windows.net"), format!("\"adls.endpoint\" = '{url}'"));
        let (case, bucket, keys) = (Case::new(name), variable("K2_TEST_AZURE_CONTAINER"), vec![(key, variable(value))]);
        Self { case, bucket, scheme: "abfss", host, properties, keys, reader }
    }

    fn google(name: &str, bucket: &str, property: &str) -> Self {
        let url = variable("K2_TEST_GCS_URL");
        let properties = format!("\"gcs.service.host\" = '{url}', {property}");
        let reader = json!({"s3.endpoint": url, "s3.region": "us-east-1", "s3.access-key-id": "any", "s3.secret-access-key": "any"});
        let (case, bucket) = (Case::new(name), variable(bucket));
        Self { case, bucket, scheme: "gs", host: String::new(), properties, keys: Vec::new(), reader }
    }

    /// Writes offload.toml with a folder of this test's own in the bucket.
    fn configure(&self, bucket: &str, catalog: &str) {
        let Self { case, scheme, host, properties, .. } = self;
        let warehouse = format!("{scheme}://{bucket}{host}/{}", case.database);
        let catalog = format!(
            "[catalog]\nuri = 'sqlite:///{catalog}'\nwarehouse = '{warehouse}'\nproperties = {{ {properties} }}\n"
        );
        case.config_file("offload.toml", "", &catalog, &format!("{TRADES}compression = 'none'\n"));
    }

    /// Runs with all variables as they should be but for `wrong`.
    fn run(&self, arguments: &[&str], wrong: &[(&str, &str)]) -> Output {
        let mut command = self.case.command(arguments);
        command.envs(self.keys.iter().map(|(name, value)| (name, value))).envs(wrong.iter().copied());
        let secrets: Vec<&str> = self.keys.iter().map(|(_, value)| value.rsplit("sig=").next().unwrap()).collect();
        finish(&mut command).keeps_back(&secrets).keeps_back(&["canary", "Y2FuYXJ5", "PRIVATE KEY"])
    }

    fn pass(&self) -> Value {
        only_table(&self.run(&["--format", "json", "run"], &[]).expect(0).json())
    }

    /// Makes the table, and moves a few rows there, then `more`; others wait in the end.
    fn moves(&self, more: u64) {
        self.case.bronze("trades");
        self.case.trades("trades", "2024-03-09 23:50:00", FEW);
        self.configure(&self.bucket, CATALOG);
        self.run(&["init-tables"], &[]).expect(0);
        assert_eq!(self.pass()["rows_written"], FEW);
        self.case.trades_over_days("trades", "2024-03-11", more, 1);
        let pass = self.pass();
        assert_eq!(pass["rows_written"], more);
        assert_eq!(pass["bytes_written"].as_u64().unwrap() > PART, more == TRADES_IN_PARTS, "{pass:#}");
        self.is_right();
        self.case.trades("trades", "2024-03-13 10:00:00", FEW);
    }

    /// Neither we nor PyIceberg find anything wrong, or anything to do.
    fn is_right(&self) {
        assert_eq!(self.pass()["status"], "nothing");
        self.run(&["audit", "--checksum"], &[]).expect(0);
        let orphans = self.run(&["--format", "json", "audit", "--orphans"], &[]).expect(0).json();
        assert_eq!(only_table(&orphans)["orphans"], json!([]));
        self.run(&["config", "check"], &[]).expect(0);
        let mut catalog = self.reader.clone();
        for (name, value) in [("name", "k2"), ("type", "sql"), ("py-io-impl", "clouds.Files")] {
            catalog[name] = value.into();
        }
        catalog["uri"] = format!("sqlite:///{}", self.case.path(CATALOG).display()).into();
        let source = json!({"url": self.case.url, "database": self.case.database, "table": "trades"});
        let asked = json!({"catalog": catalog, "source": source, "readers": ["pyiceberg"]});
        let seen = self.case.target("trades").ask("compare", asked);
        assert_eq!(seen[0]["equal"], true, "{seen:#}");
    }

    /// A pass fails for good.
    fn fails(&self, wrong: &[(&str, &str)], says: &[&str]) {
        self.run(&["run"], wrong).expect(2).says(says).says(&["\nhint: "]);
    }

    /// Another bucket is not there; then, after all that failed, the rows that wait are moved.
    fn recovers(&self, says: &[&str]) {
        self.configure("nowhere", "other.db");
        self.run(&["init-tables"], &[]).expect(2).says(says).says(&["\nhint: "]);
        self.configure(&self.bucket, CATALOG);
        assert_eq!(self.pass()["rows_written"], FEW);
        self.run(&["audit"], &[]).expect(0);
    }
}

#[test]
fn azure_by_the_key_of_the_account() {
    let cloud = Cloud::azure("azure_key", ACCOUNT_KEY, "K2_TEST_AZURE_KEY");
    cloud.moves(TRADES_IN_PARTS);
    cloud.fails(&[(ACCOUNT_KEY, "Y2FuYXJ5")], &["AuthorizationFailure"]);
    cloud.fails(&[(ACCOUNT_KEY, "canary")], &["Invalid Access Key", "AZURE_"]);
    cloud.recovers(&["ContainerNotFound"]);
}

#[test]
fn azure_by_a_sas_token() {
    let cloud = Cloud::azure("azure_sas", SAS_TOKEN, "K2_TEST_AZURE_SAS_TOKEN");
    cloud.moves(FEW);
    let reading = variable("K2_TEST_AZURE_READING_SAS_TOKEN");
    cloud.fails(&[(SAS_TOKEN, &reading)], &["AuthorizationPermissionMismatch"]);
    cloud.fails(&[(SAS_TOKEN, &format!("{reading}canary"))], &["AuthorizationFailure"]);
    // It is for one container.
    cloud.recovers(&["AuthorizationFailure"]);
}

#[test]
fn google_by_a_service_account() {
    let cloud = Cloud::google("google_key", "K2_TEST_GCS_BUCKET", "\"gcs.credentials-file\" = 'key.json'");
    let (file, key) = (cloud.case.path("key.json"), fs::read_to_string(variable("K2_TEST_GCS_KEY_FILE")).unwrap());
    fs::write(&file, &key).unwrap();
    cloud.moves(TRADES_IN_PARTS);
    for (wrong, says) in [
        (key.replace("lake@", "other@"), "AuthenticationRequired"),
        ("canary".to_owned(), "not the JSON that Google gives out"),
        // Encoded twice, as some managers of secrets give it.
        (json!(key).to_string(), "not the JSON that Google gives out"),
    ] {
        fs::write(&file, wrong).unwrap();
        cloud.fails(&[], &[says]);
    }
    fs::write(&file, &key).unwrap();
    cloud.recovers(&["NoSuchBucket"]);
}

#[test]
fn google_without_a_key() {
    let cloud = Cloud::google("google_open", "K2_TEST_GCS_OPEN_BUCKET", "\"gcs.no-auth\" = 'true'");
    cloud.moves(FEW);
    cloud.configure(&variable("K2_TEST_GCS_BUCKET"), "other.db");
    cloud.run(&["init-tables"], &[]).expect(2).says(&["AuthenticationRequired", "correct the credentials"]);
    cloud.recovers(&["NoSuchBucket"]);
}
