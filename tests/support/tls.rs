//! TLS in front of a server: stunnel, with certificates that openssl makes for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::machine::tools;
use super::wait_until;

/// A certificate authority of one test, and the certificates that it signed.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    /// One of this name, with a key of its own.
    pub fn new(name: &str) -> Self {
        let authority = Self { folder: tempfile::tempdir().unwrap() };
        authority.openssl(&format!("req -x509 -days 2 -subj /CN={name} -keyout ca.key -out ca.pem"), &[]);
        authority
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Signs a certificate for the host `name`, whose last day is so many days from now; its key lies beside it.
    pub fn sign(&self, name: &str, days: i32) -> PathBuf {
        let names = if name == "localhost" { "DNS:localhost,IP:127.0.0.1".to_owned() } else { format!("DNS:{name}") };
        let (file, request) = (format!("{name}{days}.pem"), format!("{name}{days}.csr"));
        self.openssl(&format!("req -subj /CN={name} -keyout {name}{days}.key -out {request}"), &[]);
        fs::write(self.folder.path().join("names"), format!("subjectAltName = {names}\n")).unwrap();
        let days = days.to_string();
        let sign = "x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names";
        self.openssl(sign, &["-in", &request, "-out", &file, "-days", &days]);
        self.folder.path().join(file)
    }

    fn openssl(&self, command: &str, further: &[&str]) {
        let key: &[&str] = match command.starts_with("req") {
            true => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
            false => &[],
        };
        let mut openssl = Command::new("openssl");
        let made = openssl.args(command.split(' ')).args(key).args(further).current_dir(self.folder.path()).output();
        let made = made.unwrap_or_else(|e| panic!("openssl: {e}"));
        assert!(made.status.success(), "{openssl:?}: {}", String::from_utf8_lossy(&made.stderr));
    }
}

/// A running stunnel; it ends with the test.
pub struct Terminator {
    /// What a client connects to; its host is `localhost`.
    pub url: String,
    process: Child,
    _folder: TempDir,
}

impl Terminator {
    /// Starts one that shows this certificate and passes what it is asked on to a server.
    pub fn start(certificate: &Path, server_url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, server) = (certificate.with_extension("key"), server_url.strip_prefix("http://").unwrap());
        let (certificate, key) = (certificate.display(), key.display());
        // The system's choice of a port; it is told in the log.
        let service = format!("accept = 127.0.0.1:0\nconnect = {server}\ncert = {certificate}\nkey = {key}\n");
        let (config, log) = (folder.path().join("stunnel.conf"), folder.path().join("stunnel.log"));
        let options = "foreground = yes\nsyslog = no\npid =\ndebug = info\n";
        fs::write(&config, format!("{options}output = {}\n[clickhouse]\n{service}", log.display())).unwrap();
        let mut stunnel = stunnel();
        let quiet = stunnel.arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let process = quiet.spawn().unwrap_or_else(|e| panic!("stunnel: {e}"));
        let port = || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            Some(log.split_once("bound to 127.0.0.1:")?.1.split_once('\n')?.0.trim().to_owned())
        };
        wait_until("stunnel listens", || port().is_some());
        Self { url: format!("https://localhost:{}", port().unwrap()), process, _folder: folder }
    }

    /// Where it listens, as an address of plain HTTP.
    pub fn plain_url(&self) -> String {
        self.url.replace("https://localhost", "http://127.0.0.1")
    }

    /// kill -9: its connections end without TLS's own farewell.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The machine's own, else that of `scripts/tools`.
fn stunnel() -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join("stunnel4").is_file()) {
        return Command::new("stunnel4");
    }
    let root = PathBuf::from(tools("https"));
    let mut unpacked = Command::new(root.join("usr/bin/stunnel4"));
    let libraries = fs::read_dir(root.join("usr/lib")).unwrap().map(|folder| folder.unwrap().path());
    unpacked.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
    unpacked
}
