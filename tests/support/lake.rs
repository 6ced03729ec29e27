//! The object storage, the catalogs and the https of the tests, which scripts/lake starts and scripts/test names by variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files_below;
use super::server::repository;

const MISSING: &str = "no lake for the tests: run scripts/test";

/// The value of a variable of scripts/lake, such as K2_TEST_S3_URL.
pub fn variable(name: &str) -> String {
    std::env::var(name).expect(MISSING)
}

/// The certificate of the authority that signed those of PostgreSQL and of every https address.
pub fn ca_file() -> PathBuf {
    variable("K2_TEST_CA_FILE").into()
}

/// An https address of `localhost` and 127.0.0.1 in front of a server that speaks http at `url`.
pub fn https_before(url: &str) -> String {
    let port = url.rsplit(':').next().unwrap();
    let mut command = Command::new(repository().join("scripts/lake"));
    command.args(["https", "--dir", &variable("K2_TEST_LAKE"), port]);
    run(&mut command)
}

/// An S3 server with a bucket and the keys to it.
pub struct S3 {
    pub url: String,
    pub https_url: Option<String>,
    pub bucket: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
}

impl S3 {
    /// The one that keeps its objects as files.
    pub fn shared() -> Self {
        Self {
            url: variable("K2_TEST_S3_URL"),
            https_url: Some(variable("K2_TEST_S3_HTTPS_URL")),
            bucket: variable("K2_TEST_S3_BUCKET"),
            region: variable("K2_TEST_S3_REGION"),
            access_key: variable("K2_TEST_S3_ACCESS_KEY"),
            secret_key: variable("K2_TEST_S3_SECRET_KEY"),
            session_token: None,
        }
    }

    /// The slow one that knows server-side encryption, with the keys of its user.
    pub fn moto() -> Self {
        Self {
            url: variable("K2_TEST_MOTO_URL"),
            https_url: None,
            access_key: variable("K2_TEST_MOTO_ACCESS_KEY"),
            secret_key: variable("K2_TEST_MOTO_SECRET_KEY"),
            ..Self::shared()
        }
    }

    /// The same with keys that are worth nothing without their session token.
    pub fn moto_session() -> Self {
        Self {
            access_key: variable("K2_TEST_MOTO_SESSION_ACCESS_KEY"),
            secret_key: variable("K2_TEST_MOTO_SESSION_SECRET_KEY"),
            session_token: Some(variable("K2_TEST_MOTO_SESSION_TOKEN")),
            ..Self::moto()
        }
    }
}

/// A part of the shared bucket of one test's own.
pub struct Prefix {
    prefix: String,
}

impl Prefix {
    pub fn new(name: &str) -> Self {
        Self { prefix: format!("{name}-{}", uuid::Uuid::new_v4().simple()) }
    }

    /// Where the REST catalog puts the tables of a namespace.
    pub fn of_catalog(namespace: &str) -> Self {
        Self { prefix: format!("warehouse/{namespace}") }
    }

    /// `s3://BUCKET/PREFIX`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("s3://{}/{}", variable("K2_TEST_S3_BUCKET"), self.prefix)
    }

    /// Below this, the server keeps each object as the file of its name.
    pub fn folder(&self) -> PathBuf {
        self.bucket().join(&self.prefix)
    }

    /// The names of all objects, sorted, without the prefix.
    pub fn objects(&self) -> Vec<String> {
        let folder = self.folder();
        let name = |file: PathBuf| file.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        files_below(&folder).into_iter().map(name).collect()
    }

    /// The file of the object at an `s3://` location in the shared bucket.
    pub fn file(&self, location: &str) -> PathBuf {
        let bucket = format!("s3://{}/", variable("K2_TEST_S3_BUCKET"));
        self.bucket().join(location.strip_prefix(&bucket).unwrap_or_else(|| panic!("`{location}` is not in {bucket}")))
    }

    /// The location of the object that is this file.
    pub fn location(&self, file: &Path) -> String {
        let key = file.strip_prefix(self.bucket()).unwrap();
        format!("s3://{}/{}", variable("K2_TEST_S3_BUCKET"), key.display())
    }

    fn bucket(&self) -> PathBuf {
        PathBuf::from(variable("K2_TEST_LAKE")).join("s3").join(variable("K2_TEST_S3_BUCKET"))
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.folder());
    }
}

/// A PostgreSQL database of one test's own.
pub struct Postgres {
    name: String,
    /// `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub url: String,
}

impl Postgres {
    pub fn new(name: &str) -> Self {
        let name = format!("{name}_{}", uuid::Uuid::new_v4().simple());
        psql(&variable("K2_TEST_PG_URL"), &format!("CREATE DATABASE {name}"));
        let url = variable("K2_TEST_PG_URL");
        let (server, _) = url.rsplit_once('/').unwrap();
        Self { url: format!("{server}/{name}"), name }
    }

    /// Runs statements; the rows of their answers, columns parted by `|`, without the last line break.
    pub fn sql(&self, statements: &str) -> String {
        psql(&self.url, statements)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            psql(&variable("K2_TEST_PG_URL"), &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// Runs statements on the PostgreSQL at `url`, which may have parameters such as `?sslmode=verify-full`.
pub fn psql(url: &str, statements: &str) -> String {
    let mut command = Command::new(variable("K2_TEST_PSQL"));
    run(command.args(["--no-psqlrc", "-qtA", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statements]))
}

/// Standard output of a command that must succeed, without the last line break.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
}
