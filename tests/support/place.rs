//! Where the target of a case lies: which catalog, which storage, how our configuration names them, and how other readers get there.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::faults::FaultyProxy;
use super::lake::{Postgres, Prefix, variable};
use super::server;

/// Catalog and storage of the targets of a case. All but the first are on the lake of scripts/lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A SQLite file, and a folder, of the case itself.
    Local,
    /// A SQLite file, and S3.
    Sqlite,
    /// PostgreSQL, and S3.
    Postgres,
    /// A REST catalog that lets everybody in, and S3.
    Rest,
    /// A REST catalog that wants OAuth2 tokens, lends the keys to S3, and honours idempotency keys.
    Guarded,
}

impl Place {
    pub fn is_rest(self) -> bool {
        matches!(self, Self::Rest | Self::Guarded)
    }
}

/// The lake as one case uses it. A test may put a proxy before a part of it, before the configuration is written.
pub struct Lake {
    pub place: Place,
    /// Where the configuration says that the catalog is; the URI of PostgreSQL with user and without password.
    pub catalog_url: String,
    /// Where it says that S3 is; one that lends keys says itself where.
    pub s3_url: String,
    /// Further keys of `[catalog]`, such as `timeout = '1s'`.
    pub keys: String,
    /// What the tests call `cold`: in a catalog that all tests share, a name of the case's own.
    pub namespace: String,
    /// Where its tables lie.
    pub prefix: Prefix,
    postgres: Option<Postgres>,
}

/// Before the catalog and before S3 of a case.
pub struct Proxies {
    pub catalog: FaultyProxy,
    pub s3: FaultyProxy,
}

impl Lake {
    pub fn new(place: Place, name: &str) -> Self {
        let postgres = (place == Place::Postgres).then(|| Postgres::new(name));
        let namespace = match place.is_rest() {
            true => format!("cold_{name}_{}", uuid::Uuid::new_v4().simple()),
            false => "cold".to_owned(),
        };
        let catalog_url = match place {
            Place::Local | Place::Sqlite => "sqlite:///catalog.db".to_owned(),
            Place::Postgres => {
                let (user, host) = split_password(&postgres.as_ref().unwrap().url).0;
                format!("{user}@{host}?sslmode=disable")
            }
            Place::Rest => variable("K2_TEST_REST_URL"),
            Place::Guarded => variable("K2_TEST_REST_OAUTH_URL"),
        };
        let prefix = match place.is_rest() {
            true => Prefix::of_catalog(&namespace),
            false => Prefix::new(name),
        };
        let s3_url = variable("K2_TEST_S3_URL");
        Self { place, catalog_url, s3_url, keys: String::new(), namespace, prefix, postgres }
    }

    /// Puts proxies before catalog and S3.
    pub fn behind_proxies(&mut self) -> Proxies {
        let s3 = FaultyProxy::http(&self.s3_url);
        self.s3_url.clone_from(&s3.url);
        let catalog = match self.place {
            Place::Postgres => {
                let server = variable("K2_TEST_PG_URL");
                let server = server.rsplit(['@', '/']).nth(1).unwrap();
                let proxy = FaultyProxy::postgres(server);
                self.catalog_url = self.catalog_url.replace(server, proxy.address());
                proxy
            }
            Place::Rest | Place::Guarded => {
                let proxy = FaultyProxy::http(&self.catalog_url);
                self.catalog_url.clone_from(&proxy.url);
                proxy
            }
            Place::Local | Place::Sqlite => panic!("no proxy goes before a file"),
        };
        Proxies { catalog, s3 }
    }

    /// The request that commits to the table `trades`.
    pub fn commit_request(&self) -> &'static str {
        if self.place.is_rest() { "POST */tables/trades" } else { "Q COMMIT" }
    }

    /// The section `[catalog]`.
    pub fn config(&self) -> String {
        let (uri, keys) = (&self.catalog_url, &self.keys);
        let section = match self.place {
            Place::Local => return String::new(),
            Place::Sqlite => format!("uri = '{uri}'\nwarehouse = '{}'", self.prefix.url()),
            Place::Postgres => {
                format!("uri = '{uri}'\nwarehouse = '{}'\npassword_env = 'LAKE_PASSWORD'", self.prefix.url())
            }
            Place::Rest => format!("type = 'rest'\nuri = '{uri}'"),
            Place::Guarded => format!(
                "type = 'rest'\nuri = '{uri}'\nwarehouse = '{}'\ncredential_env = 'LAKE_CREDENTIAL'",
                variable("K2_TEST_REST_WAREHOUSE")
            ),
        };
        let storage =
            format!("\"s3.endpoint\" = '{}', \"s3.region\" = '{}'", self.s3_url, variable("K2_TEST_S3_REGION"));
        let properties = if self.place == Place::Guarded { "{}".to_owned() } else { format!("{{ {storage} }}") };
        format!("[catalog]\n{section}\n{keys}\nproperties = {properties}\n")
    }

    /// The secrets that the configuration names.
    pub fn lend_secrets(&self, command: &mut Command) {
        match self.place {
            Place::Local => return,
            // All that it needs for S3, the catalog lends.
            Place::Guarded => {
                let (id, secret) = (variable("K2_TEST_REST_CLIENT_ID"), variable("K2_TEST_REST_CLIENT_SECRET"));
                command.env("LAKE_CREDENTIAL", format!("{id}:{secret}"));
                return;
            }
            Place::Postgres => {
                command.env("LAKE_PASSWORD", split_password(&self.postgres.as_ref().unwrap().url).1);
            }
            Place::Sqlite | Place::Rest => {}
        }
        command.env("AWS_ACCESS_KEY_ID", variable("K2_TEST_S3_ACCESS_KEY"));
        command.env("AWS_SECRET_ACCESS_KEY", variable("K2_TEST_S3_SECRET_KEY"));
    }

    /// A text of a test, such as a configuration or an argument, whose `cold` is the namespace of the case.
    pub fn in_namespace(&self, text: &str) -> String {
        text.replace("cold.", &format!("{}.", self.namespace))
    }

    /// The catalog as PyIceberg's properties name it; no proxy is before it.
    pub fn for_readers(&self, sqlite: PathBuf) -> Value {
        let mut properties = json!({
            "name": "k2",
            "s3.endpoint": variable("K2_TEST_S3_URL"),
            "s3.region": variable("K2_TEST_S3_REGION"),
            "s3.access-key-id": variable("K2_TEST_S3_ACCESS_KEY"),
            "s3.secret-access-key": variable("K2_TEST_S3_SECRET_KEY"),
        });
        let (kind, uri) = match self.place {
            Place::Local | Place::Sqlite => ("sql", format!("sqlite:///{}", sqlite.display())),
            Place::Postgres => {
                let url = &self.postgres.as_ref().unwrap().url;
                ("sql", url.replacen("postgresql://", "postgresql+psycopg2://", 1))
            }
            Place::Rest | Place::Guarded => ("rest", variable("K2_TEST_REST_URL")),
        };
        properties["type"] = kind.into();
        properties["uri"] = uri.into();
        properties
    }

    /// ClickHouse's table function for a table at `location`, up to its settings.
    pub fn clickhouse(&self, location: &str) -> String {
        let key = location.strip_prefix("s3://").unwrap();
        let (id, secret) = (variable("K2_TEST_S3_ACCESS_KEY"), variable("K2_TEST_S3_SECRET_KEY"));
        format!("icebergS3('{}/{key}', '{id}', '{secret}'", variable("K2_TEST_S3_URL"))
    }

    /// Where the catalog says that the metadata of a table is; `None` where a SQLite file knows it.
    pub fn metadata_location(&self, namespace: &str, table: &str) -> Option<String> {
        match self.place {
            Place::Local | Place::Sqlite => None,
            Place::Postgres => Some(self.postgres.as_ref().unwrap().sql(&format!(
                "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = '{namespace}' AND table_name = '{table}'"
            ))),
            Place::Rest | Place::Guarded => {
                let path = format!("/v1/namespaces/{namespace}/tables/{table}");
                let answer = server::get(&variable("K2_TEST_REST_URL"), &path).unwrap();
                let answer: Value = serde_json::from_str(&answer).unwrap();
                Some(answer["metadata-location"].as_str().unwrap().to_owned())
            }
        }
    }

    /// Swaps metadata locations in PostgreSQL; whether it did.
    pub fn swaps(&self, old: &str, new: &str) -> bool {
        let database = self.postgres.as_ref().expect("only SQL catalogs can be swapped by hand");
        let swap = format!(
            "UPDATE iceberg_tables SET metadata_location = '{new}', previous_metadata_location = '{old}' \
             WHERE metadata_location = '{old}' RETURNING 1"
        );
        database.sql(&swap) == "1"
    }

    /// The database of a case in PostgreSQL.
    pub fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().unwrap()
    }
}

/// `postgresql://USER` and host with database, and the password.
fn split_password(url: &str) -> ((&str, &str), &str) {
    let (user, host) = url.split_once('@').unwrap();
    let (user, password) = user.rsplit_once(':').unwrap();
    ((user, host), password)
}
