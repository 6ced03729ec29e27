//! ClickHouse over https, its certificate signed by an authority that only `ca_file` knows: rows arrive as over http, and who is not whom the
//! configuration names is told apart from who is away.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread;

use support::lake::variable;
use support::proxy::Proxy;
use support::tls::{Authority, Terminator};
use support::{Case, Server, TRADES, fails, finish, only_table, server};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];
const PASSWORD: &str = "correct-horse-battery";
const ROWS: u64 = 300_000;

/// `https.toml` asks at `url` and trusts `ca_file`, by a path relative to the file.
fn configure(case: &Case, url: &str, ca_file: Option<&Path>) {
    let ca_file = ca_file.map_or(String::new(), |file| {
        fs::copy(file, case.path("ca.pem")).unwrap();
        "ca_file = 'ca.pem'".to_owned()
    });
    case.config_file("https.toml", &format!("{ca_file}\nidle_timeout = '5s'"), "", TRADES);
    let text = fs::read_to_string(case.path("https.toml")).unwrap();
    fs::write(case.path("https.toml"), text.replace(&case.url, url)).unwrap();
}

/// A table of [`ROWS`] trades over three days, behind TLS.
fn behind_tls(name: &str) -> (Case, Authority, Terminator) {
    let case = Case::with_trades(name);
    case.trades_over_days("trades", "2024-03-09 12:00:00", ROWS, 3);
    let authority = Authority::new("k2");
    let tls = Terminator::start(&authority.sign("localhost", 1), &case.url);
    configure(&case, &tls.url, Some(&authority.file()));
    (case, authority, tls)
}

/// Commands fail with exit code 2, saying `texts`, and change nothing.
fn is_refused(case: &Case, texts: &[&str]) {
    let before = case.target("trades").state();
    case.run_with("https.toml", &["config", "check"]).expect(2).says(texts);
    case.run_with("https.toml", &["run"]).expect(2).says(texts).says(&["hint: "]);
    assert_eq!(case.target("trades").state(), before);
}

#[test]
fn a_pass_over_https_moves_every_row() {
    let (case, _authority, tls) = behind_tls("https");
    case.run_with("https.toml", &["config", "check"]).expect(0).says(&[&tls.url, "ca.pem"]);
    let document = case.run_with("https.toml", &JSON_RUN).expect(0).json();
    assert_eq!(only_table(&document)["rows_written"], ROWS);
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").has_no_other_files();
    case.run_with("https.toml", &["audit", "--checksum"]).expect(0);
    // The same source as over http.
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn certificates_of_the_system_count_too() {
    let (case, authority, tls) = behind_tls("https_system");
    configure(&case, &tls.url, None);
    let run = |trusted: &Path| finish(case.command_with("https.toml", &["run"]).env("SSL_CERT_FILE", trusted));
    run(Path::new("/etc/ssl/certs/ca-certificates.crt")).expect(2).says(&["UnknownIssuer", "clickhouse.ca_file"]);
    run(&authority.file()).expect(0);
    case.target("trades").holds_all("trades");
}

#[test]
fn who_is_not_whom_the_configuration_names_is_told_with_what_is_wrong() {
    let (case, authority, good) = behind_tls("https_wrong");
    let ca_file = authority.file();

    // Another authority; one that was made anew.
    for (name, text) in [("others", "UnknownIssuer"), ("k2", "BadSignature")] {
        configure(&case, &good.url, Some(&Authority::new(name).file()));
        is_refused(&case, &[&good.url, text, "knows the CA", "clickhouse.ca_file"]);
    }

    let other = Terminator::start(&authority.sign("other.example", 1), &case.url);
    configure(&case, &other.url, Some(&ca_file));
    is_refused(&case, &["other.example", "another host", "subjectAltName"]);

    let expired = Terminator::start(&authority.sign("localhost", -1), &case.url);
    configure(&case, &expired.url, Some(&ca_file));
    is_refused(&case, &["expired", "renew it", "clickhouse.ca_file"]);

    // A certificate that signed itself is none for a server.
    let own = Terminator::start(&ca_file, &case.url);
    configure(&case, &own.url, Some(&ca_file));
    is_refused(&case, &["subjectAltName", "clickhouse.ca_file"]);

    // The REST catalog, not ClickHouse: one TLS greeting in about 60 reads as a request line and the start of a header, and ClickHouse 26.7 dies
    // of a header that ends too early, with every test that runs beside this one.
    configure(&case, &variable("K2_TEST_REST_URL").replace("http:", "https:"), Some(&ca_file));
    is_refused(&case, &["does not speak TLS", "http://"]);

    let other_protocol = TcpListener::bind("127.0.0.1:0").unwrap();
    configure(&case, &format!("http://{}", other_protocol.local_addr().unwrap()), None);
    thread::spawn(move || {
        for mut client in other_protocol.incoming().flatten() {
            let _ = client.read(&mut [0; 1024]);
            let _ = client.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
        }
    });
    is_refused(&case, &["does not speak HTTP"]);

    configure(&case, &good.plain_url(), None);
    is_refused(&case, &["speaks TLS", "must begin with https://"]);

    configure(&case, &good.url, Some(&ca_file));
    case.run_with("https.toml", &["run"]).expect(0);
    case.target("trades").holds_all("trades");
}

#[test]
fn a_ca_file_without_certificates_is_an_error_of_the_configuration() {
    let (case, authority, tls) = behind_tls("https_ca_file");
    for (content, text) in [
        (None, "No such file"),
        (Some(String::new()), "it holds none"),
        (Some("certainly no certificate\n".to_owned()), "it holds none"),
        (Some("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n".to_owned()), "certificate"),
        (Some(fs::read_to_string(authority.file().with_extension("key")).unwrap()), "it holds none"),
    ] {
        configure(&case, &tls.url, Some(&authority.file()));
        fs::remove_file(case.path("ca.pem")).unwrap();
        if let Some(content) = content {
            fs::write(case.path("ca.pem"), content).unwrap();
        }
        is_refused(&case, &["clickhouse.ca_file", text]);
    }
    configure(&case, &case.url, Some(&authority.file()));
    case.run_with("https.toml", &["run"]).expect(2).says(&["clickhouse.ca_file", "https"]);
}

#[test]
fn who_is_away_or_hangs_up_is_waited_for() {
    let (case, authority, mut tls) = behind_tls("https_away");
    let proxy = Proxy::blind(&tls.plain_url());
    configure(&case, &proxy.url.replace("http://127.0.0.1", "https://localhost"), Some(&authority.file()));
    // Nothing of the handshake, and half of it.
    for cut in [0, 300] {
        proxy.cut_after(cut);
        case.run_with("https.toml", &["run"]).expect(1).says(&["connect to ClickHouse", "hint: nothing was changed"]);
    }
    proxy.let_pass();
    tls.kill();
    configure(&case, &tls.url, Some(&authority.file()));
    case.run_with("https.toml", &["run"]).expect(1).says(&[&tls.url, "hint: nothing was changed"]);
}

/// Where the server's own answer ends too early TLS ends well; where the connection does, without its farewell.
#[test]
fn an_answer_that_is_cut_within_tls_leaves_nothing_behind() {
    let (case, authority, _tls) = behind_tls("https_cut");
    let inner = Proxy::start(&case.url, "trades");
    let tls = Terminator::start(&authority.sign("localhost", 1), &inner.url);
    let outer = Proxy::blind(&tls.plain_url());
    configure(&case, &outer.url.replace("http://127.0.0.1", "https://localhost"), Some(&authority.file()));
    let before = case.target("trades").state();
    let fails_whole = || {
        let document = case.run_with("https.toml", &JSON_RUN).expect(1).json();
        fails(&only_table(&document), "unavailable", &["`trades`", "next pass"]);
        assert_eq!(case.target("trades").state(), before);
    };
    for cut in [0, 10, 1_000_000] {
        inner.cut_after(cut);
        fails_whole();
    }
    inner.cut_before_end();
    fails_whole();
    inner.let_pass();
    for cut in [100_000, 1_000_000, 2_000_000] {
        outer.cut_after(cut);
        fails_whole();
    }
    outer.let_pass();
    case.run_with("https.toml", &["run"]).expect(0);
    assert!(inner.longest() > 2_000_000, "the cuts were no cuts: {}", inner.longest());
    case.target("trades").holds_all("trades");
    case.target("trades").has_no_other_files();
}

#[test]
fn the_password_stays_secret() {
    let server = Server::start("UTC");
    let case = Case::on(&server.url, "https_password");
    case.bronze("trades");
    case.trades("trades", "2024-03-10", 100);
    let authority = Authority::new("k2");
    let good = Terminator::start(&authority.sign("localhost", 1), &case.url);
    let other = Terminator::start(&authority.sign("other.example", 1), &case.url);
    let credentials = "user = 'offload'\npassword_env = 'PASSWORD_OF_TEST'\nca_file = 'ca.pem'";
    fs::copy(authority.file(), case.path("ca.pem")).unwrap();
    for (url, password, code) in [
        (&good.url, PASSWORD, 0),
        (&good.url, "wrong-password", 2),
        (&other.url, PASSWORD, 2),
        (&good.plain_url(), PASSWORD, 2),
    ] {
        let url = url.replace("http://", "https://").replace("https://127.0.0.1", "http://127.0.0.1");
        case.config_file("offload.toml", credentials, "", TRADES);
        let mut text = fs::read_to_string(case.path("offload.toml")).unwrap().replace(&case.url, &url);
        if url.starts_with("http:") {
            text = text.replace("ca_file = 'ca.pem'", "");
        }
        fs::write(case.path("offload.toml"), text).unwrap();
        for command in
            [&["-vv", "init-tables"][..], &["-vv", "--log-format", "json", "run"], &["-vv", "config", "check"]]
        {
            let output = finish(case.command(command).env("PASSWORD_OF_TEST", password));
            assert_eq!(output.code, Some(code), "{url}\n{}", output.all());
            output.keeps_back(&[PASSWORD, "wrong-password"]);
        }
    }
    assert_eq!(server::post(&case.url, &case.database, "SELECT count() FROM trades").unwrap(), "100");
    case.target("trades").holds_all("trades");
}
