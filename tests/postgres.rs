//! The catalog in PostgreSQL, against a real one: who wins, what is certain after an error, and what is told of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]
mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k2_offload::config::{Backend, Config, Postgres, TableName};
use k2_offload::error::{Error, Kind};
use k2_offload::target::{Moved, PostgresCatalog as Catalog, SwapError};
use support::lake::{self, ca_file, psql};
use support::{PATIENCE, POLL, server, wait_until};

/// The configuration of the database at a libpq URL, whose password goes where passwords belong.
fn config(url: &str, further: &str) -> Postgres {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, place) = rest.split_once('@').unwrap_or(("", rest));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let secret = if password.is_empty() { "" } else { "password_env = 'PW'" };
    let text = format!(
        "[catalog]\nuri = '{scheme}://{user}@{place}'\n{secret}\n{further}\n\
         [[table]]\nsource = 't'\ntarget = 'cold.t'\ncursor = 'ts'\n"
    );
    let config = Config::parse(&text, Path::new("/"), |_| Some(password.to_owned())).unwrap();
    match config.catalog.backend {
        Backend::Postgres(postgres) => postgres,
        other => panic!("{other:?}"),
    }
}

/// With a short wait for answers.
fn hasty(url: &str) -> Postgres {
    config(url, "timeout = '1s'")
}

fn table(name: &str) -> TableName {
    TableName { namespace: "cold".into(), name: name.into() }
}

async fn catalog(database: &lake::Postgres) -> Catalog {
    let catalog = Catalog::open_or_create("k2", &config(&database.url, "")).await.unwrap();
    assert!(catalog.insert(&table("t"), "a").await.unwrap());
    catalog
}

/// Waits as [`wait_until`] does, while connections of this thread go on.
async fn until(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.expect("it came to be in time");
}

async fn refused(config: &Postgres) -> Error {
    Catalog::open("k2", config).await.expect_err("it can be opened")
}

fn says(error: &Error, kind: Kind, texts: &[&str]) {
    let said = format!("{error}\nhint: {}", error.hint_text());
    assert_eq!(error.kind(), kind, "{said}");
    assert!(texts.iter().all(|text| said.contains(text)), "{texts:?} in: {said}");
    assert!(!said.contains("password@") && !said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn a_swap_needs_the_location_that_it_names() {
    let database = lake::Postgres::new("swap");
    let catalog = catalog(&database).await;
    assert!(!catalog.insert(&table("t"), "b").await.unwrap());
    assert_eq!(catalog.swap(&table("t"), "b", "c").await.unwrap(), Moved::Stale);
    assert_eq!(catalog.swap(&table("t"), "a", "c").await.unwrap(), Moved::Done);
    assert_eq!(catalog.swap(&table("other"), "a", "c").await.unwrap(), Moved::Stale);
    catalog.try_writing().await.unwrap();
    let again = Catalog::open("k2", &config(&database.url, "")).await.unwrap();
    assert_eq!(again.location(&table("t")).await.unwrap().as_deref(), Some("c"));
    assert_eq!(again.location(&table("other")).await.unwrap(), None);
    let other = Catalog::open("else", &config(&database.url, "")).await.unwrap();
    assert_eq!(other.location(&table("t")).await.unwrap(), None);
    assert_eq!(
        database.sql("SELECT metadata_location, previous_metadata_location, iceberg_type FROM iceberg_tables"),
        "c|a|TABLE"
    );
    assert_eq!(database.sql("SELECT * FROM iceberg_namespace_properties"), "k2|cold|exists|true");
}

#[tokio::test]
async fn views_are_not_ours_and_older_tables_work_too() {
    let database = lake::Postgres::new("views");
    let ours = catalog(&database).await;
    database.sql("UPDATE iceberg_tables SET iceberg_type = NULL");
    assert!(ours.location(&table("t")).await.unwrap().is_some());
    database.sql("UPDATE iceberg_tables SET iceberg_type = 'VIEW'");
    assert_eq!(ours.location(&table("t")).await.unwrap(), None);
    database.sql("DELETE FROM iceberg_tables; ALTER TABLE iceberg_tables DROP COLUMN iceberg_type");
    let old = catalog(&database).await;
    assert_eq!(old.location(&table("t")).await.unwrap().as_deref(), Some("a"));
}

/// On the row's lock both are planned on the same location; PostgreSQL lets one through, and shows the other what it left.
#[tokio::test]
async fn of_two_writers_one_wins() {
    let database = lake::Postgres::new("writers");
    catalog(&database).await;
    let open = async || Catalog::open("k2", &config(&database.url, "")).await.unwrap();
    let (one, two) = (open().await, open().await);
    let mut now = "a".to_owned();
    for round in 0..50 {
        let (left, right) = (format!("{round} one"), format!("{round} two"));
        let name = table("t");
        let both = tokio::join!(one.swap(&name, &now, &left), two.swap(&name, &now, &right));
        now = match (both.0.unwrap(), both.1.unwrap()) {
            (Moved::Done, Moved::Stale) => left,
            (Moved::Stale, Moved::Done) => right,
            both => panic!("{both:?}"),
        };
        assert_eq!(one.location(&name).await.unwrap(), Some(now.clone()));
    }
}

#[tokio::test]
async fn first_runs_may_come_at_once() {
    let database = lake::Postgres::new("first");
    let config = config(&database.url, "");
    let runs = (0..8).map(|_| Catalog::open_or_create("k2", &config));
    for run in futures::future::join_all(runs).await {
        run.unwrap();
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_apart() {
    let database = lake::Postgres::new("wrong");
    let error = refused(&config(&database.url, "")).await;
    says(&error, Kind::Refused, &["has no table iceberg_tables", "init-tables"]);
    database.sql("CREATE TABLE iceberg_tables (x int)");
    says(&refused(&config(&database.url, "")).await, Kind::Config, &["is no table of an Iceberg catalog"]);

    let (server, _) = database.url.rsplit_once('/').unwrap();
    let error = refused(&config(&format!("{server}/nowhere"), "")).await;
    says(&error, Kind::Config, &["3D000", "open the catalog", "/nowhere", "correct the database"]);

    let (user, place) = database.url.split_once('@').unwrap();
    let (scheme, user) = user.split_once("://").unwrap();
    let (user, _) = user.split_once(':').unwrap();
    let error = refused(&config(&format!("{scheme}://{user}:s3cret@{place}"), "")).await;
    says(&error, Kind::Config, &["28P01", "password_env"]);
    let error = refused(&config(&format!("{scheme}://{user}@{place}"), "")).await;
    says(&error, Kind::Config, &["may want a password"]);

    let error = refused(&config("postgresql://u:s3cret@127.0.0.1:1/d", "")).await;
    says(&error, Kind::Unavailable, &["connect to postgresql://127.0.0.1:1/d"]);
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgresql://u@{}/d?sslmode=require", web.local_addr().unwrap());
    std::thread::spawn(move || web.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    says(&refused(&config(&url, "")).await, Kind::Config, &["does not support TLS", "host, port and sslmode"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgresql://u@{}/d", silent.local_addr().unwrap());
    let error = refused(&config(&url, "connect_timeout = '1s'")).await;
    says(&error, Kind::Unavailable, &["no answer within 1s", "host and port"]);
}

#[tokio::test]
async fn grants_are_named() {
    let database = lake::Postgres::new("grants");
    catalog(&database).await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    database.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 's3cret'"));
    let (_, place) = database.url.split_once('@').unwrap();
    let reader = config(&format!("postgresql://{role}:s3cret@{place}"), "");
    let catalog = Catalog::open("k2", &reader).await.unwrap();
    says(&catalog.location(&table("t")).await.unwrap_err(), Kind::Config, &["42501", "read catalog", "grant"]);
    database.sql(&format!("GRANT SELECT ON iceberg_tables TO {role}"));
    assert!(catalog.location(&table("t")).await.unwrap().is_some());
    says(&catalog.try_writing().await.unwrap_err(), Kind::Config, &["42501", "write to catalog"]);
    match catalog.swap(&table("t"), "a", "b").await {
        Err(SwapError::NotDone(error)) => says(&error, Kind::Config, &["42501", "commit to catalog"]),
        other => panic!("{other:?}"),
    }
    database.sql(&format!(
        "ALTER ROLE {role} SET default_transaction_read_only = on; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    ));
    let catalog = Catalog::open("k2", &reader).await.unwrap();
    assert_eq!(catalog.swap(&table("t"), "a", "b").await.unwrap(), Moved::Done, "a default of the role");
    drop(catalog);
    database.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[tokio::test]
async fn certificates_are_verified_where_that_is_asked_for() {
    let database = lake::Postgres::new("tls");
    database.sql("CREATE TABLE iceberg_tables (metadata_location text)");
    let url = |parameters: &str| format!("{}?{parameters}", database.url);
    let open = async |config: Postgres| Catalog::open("k2", &config).await.map(drop);
    let encrypted = || {
        let query = "SELECT bool_or(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE datname = current_database() AND application_name LIKE 'k2-offload%'";
        database.sql(query)
    };
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&config(&url(&format!("sslmode={mode}")), "")).await;
        says(&error, Kind::Config, &["certificate", "ca_file"]);
        let trusting = format!("sslmode={mode}&sslrootcert={}", ca_file().display());
        open(config(&url(&trusting), "")).await.unwrap();
    }
    let ca = format!("ca_file = '{}'", ca_file().display());
    open(config(&url("sslmode=require"), &ca)).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=other"])
        .args(["-keyout", "/dev/null", "-out"])
        .arg(other.path().join("ca.pem"))
        .output()
        .unwrap();
    assert!(made.status.success());
    let foreign = format!("ca_file = '{}'", other.path().join("ca.pem").display());
    // A certificate to trust is there to be used.
    says(&refused(&config(&database.url, &foreign)).await, Kind::Config, &["certificate", "ca_file"]);

    for (wanted, address) in [("t", database.url.clone()), ("f", url("sslmode=disable"))] {
        // Sessions of before, whose ends are this thread's to do.
        until(|| encrypted().is_empty()).await;
        let held = Catalog::open("k2", &config(&address, "")).await.unwrap();
        assert_eq!(encrypted(), wanted, "{address}");
        drop(held);
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_leaves_time_for_the_next() {
    let database = lake::Postgres::new("hosts");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    // Nobody accepts, and once its queue is full it does not answer any more.
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let queue: Vec<TcpStream> = std::iter::from_fn(|| connect().ok()).collect();
    let hosts = database.url.replacen('@', &format!("@{address},"), 1);
    Catalog::open_or_create("k2", &config(&hosts, "connect_timeout = '2s'")).await.unwrap();
    drop(queue);
}

/// What ends the sessions of k2-offload but leaves others alone.
fn terminate(database: &lake::Postgres) -> String {
    database.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name LIKE 'k2-offload%'",
    )
}

#[tokio::test]
async fn a_session_that_ended_between_two_statements_is_made_again() {
    let database = lake::Postgres::new("again");
    let catalog = catalog(&database).await;
    assert_eq!(terminate(&database), "1");
    assert_eq!(catalog.location(&table("t")).await.unwrap().as_deref(), Some("a"));
    assert_eq!(terminate(&database), "1");
    assert_eq!(catalog.swap(&table("t"), "a", "b").await.unwrap(), Moved::Done);
}

/// Makes COMMIT do this before it commits.
fn at_commit(database: &lake::Postgres, what: &str) {
    database.sql(&format!(
        "CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON iceberg_tables DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION at_commit()"
    ));
}

/// Waits in PL/pgSQL until [`go`].
const UNTIL_GO: &str = "WHILE NOT EXISTS (SELECT FROM go) LOOP PERFORM pg_sleep(0.01); END LOOP";

/// Lets those go on who wait for it.
fn go(database: &lake::Postgres) {
    database.sql("INSERT INTO go DEFAULT VALUES");
}

const IN_COMMIT: &str = "SELECT count(*) FROM pg_stat_activity \
                         WHERE datname = current_database() AND query = 'COMMIT' AND state = 'active'";

/// P14: nobody can tell whether it was before or after.
#[tokio::test]
async fn a_session_that_ends_in_commit_leaves_the_outcome_unknown() {
    let database = lake::Postgres::new("killed");
    let catalog = catalog(&database).await;
    database.sql("CREATE TABLE go ()");
    at_commit(&database, UNTIL_GO);
    let killer = async {
        until(|| database.sql(IN_COMMIT) == "1").await;
        terminate(&database)
    };
    let name = table("t");
    let (swapped, killed) = tokio::join!(catalog.swap(&name, "a", "b"), killer);
    assert_eq!(killed, "1");
    match swapped {
        Err(SwapError::Unknown(error)) => says(&error, Kind::Unavailable, &["commit to catalog"]),
        other => panic!("{other:?}"),
    }
    database.sql("DROP TRIGGER at_commit ON iceberg_tables");
    assert_eq!(catalog.location(&name).await.unwrap().as_deref(), Some("a"));
    assert_eq!(catalog.swap(&name, "a", "b").await.unwrap(), Moved::Done, "the same again");
}

/// P14: what is undecided may land later.
#[tokio::test]
async fn a_commit_that_does_not_answer_may_land_later() {
    let database = lake::Postgres::new("late");
    catalog(&database).await;
    let hasty = Catalog::open("k2", &hasty(&database.url)).await.unwrap();
    database.sql("CREATE TABLE go ()");
    at_commit(&database, UNTIL_GO);
    match hasty.swap(&table("t"), "a", "b").await {
        Err(SwapError::Unknown(error)) => says(&error, Kind::Unavailable, &["no answer within 1s"]),
        other => panic!("{other:?}"),
    }
    assert_eq!(hasty.location(&table("t")).await.unwrap().as_deref(), Some("a"));
    go(&database);
    wait_until("it lands", || database.sql("SELECT metadata_location FROM iceberg_tables") == "b");
}

#[tokio::test]
async fn a_commit_that_the_server_takes_back_is_not_done() {
    let database = lake::Postgres::new("back");
    let catalog = catalog(&database).await;
    for state in ["40001", "23514", "53100"] {
        at_commit(&database, &format!("RAISE EXCEPTION 'no' USING ERRCODE = '{state}'"));
        match catalog.swap(&table("t"), "a", "b").await {
            Err(SwapError::NotDone(error)) => assert!(error.to_string().contains(state), "{error}"),
            other => panic!("{state}: {other:?}"),
        }
        database.sql("DROP TRIGGER at_commit ON iceberg_tables; DROP FUNCTION at_commit");
    }
    assert_eq!(catalog.swap(&table("t"), "a", "b").await.unwrap(), Moved::Done);
}

/// Somebody's open transaction on the row is not waited for without end, and what was not asked to commit is not done.
#[tokio::test]
async fn a_row_that_another_holds_is_given_up() {
    let database = lake::Postgres::new("held");
    catalog(&database).await;
    let hasty = Catalog::open("k2", &hasty(&database.url)).await.unwrap();
    database.sql("CREATE TABLE go ()");
    let holder = std::thread::spawn({
        let url = database.url.clone();
        let hold = format!(
            "BEGIN; UPDATE iceberg_tables SET metadata_location = 'x'; DO $$ BEGIN {UNTIL_GO}; END $$; ROLLBACK"
        );
        move || psql(&url, &hold)
    });
    wait_until("the row is held", || {
        database
            .sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")
            == "1"
    });
    match hasty.swap(&table("t"), "a", "b").await {
        Err(SwapError::NotDone(error)) => says(&error, Kind::Unavailable, &["55P03", "another session holds the row"]),
        other => panic!("{other:?}"),
    }
    assert_eq!(hasty.location(&table("t")).await.unwrap().as_deref(), Some("a"), "reading waits for nobody");
    go(&database);
    holder.join().unwrap();
    assert_eq!(hasty.swap(&table("t"), "a", "b").await.unwrap(), Moved::Done);
}

/// Invariant 11: a server or a user may have turned waiting for the disk off.
#[tokio::test]
async fn a_commit_waits_for_the_disk() {
    let database = lake::Postgres::new("disk");
    catalog(&database).await;
    database.sql("CREATE TABLE seen (at text)");
    at_commit(&database, "INSERT INTO seen VALUES (current_setting('synchronous_commit'))");
    for (setting, wanted) in [
        ("off", "on"),
        ("local", "on"),
        ("on", "on"),
        ("remote_write", "remote_write"),
        ("remote_apply", "remote_apply"),
    ] {
        let name = database.sql("SELECT current_database()");
        database.sql(&format!("ALTER DATABASE {name} SET synchronous_commit = {setting}; TRUNCATE seen"));
        let catalog = Catalog::open("k2", &config(&database.url, "")).await.unwrap();
        let old = catalog.location(&table("t")).await.unwrap().unwrap();
        catalog.swap(&table("t"), &old, setting).await.unwrap();
        assert_eq!(database.sql("SELECT at FROM seen"), wanted);
    }
}

/// The same rows, read and written by both.
#[tokio::test]
async fn pyiceberg_shares_the_catalog() {
    let database = lake::Postgres::new("shared");
    let folder = tempfile::tempdir().unwrap();
    let python = |script: &str| {
        let url = database.url.replacen("postgresql://", "postgresql+psycopg2://", 1);
        let script = format!(
            "from pyiceberg.catalog.sql import SqlCatalog\nfrom pyiceberg.schema import Schema\n\
             from pyiceberg.types import NestedField, LongType\n\
             catalog = SqlCatalog('k2', uri='{url}', warehouse='file://{}')\n{script}",
            folder.path().display()
        );
        let output = Command::new(server::readers_python()).args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // Theirs first: the tables are PyIceberg's own.
    let created = python(
        "catalog.create_namespace('cold')\n\
         print(catalog.create_table('cold.t', Schema(NestedField(1, 'x', LongType()))).metadata_location)",
    );
    let catalog = Catalog::open_or_create("k2", &config(&database.url, "")).await.unwrap();
    assert_eq!(catalog.location(&table("t")).await.unwrap(), Some(created.clone()));
    // Ours: another name for the same file, and a table of our own that they list and load.
    let moved = created.replace(".metadata.json", "-moved.metadata.json");
    let file = |location: &str| location.strip_prefix("file://").unwrap().to_owned();
    std::fs::copy(file(&created), file(&moved)).unwrap();
    assert_eq!(catalog.swap(&table("t"), &created, &moved).await.unwrap(), Moved::Done);
    assert!(catalog.insert(&table("ours"), &moved).await.unwrap());
    let seen = python("print(catalog.load_table('cold.t').metadata_location, sorted(catalog.list_tables('cold')))");
    assert_eq!(seen, format!("{moved} [('cold', 'ours'), ('cold', 't')]"));
    // Theirs again, on ours; what was planned on the location before is stale.
    let theirs = python(
        "t = catalog.load_table('cold.t')\nt.transaction().set_properties(a='b').commit_transaction()\nprint(t.metadata_location)",
    );
    assert_eq!(catalog.swap(&table("t"), &moved, "elsewhere").await.unwrap(), Moved::Stale);
    assert_eq!(catalog.location(&table("t")).await.unwrap(), Some(theirs));
}
