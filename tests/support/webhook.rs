//! An HTTP server that takes documents and answers as it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// A running server; its threads end with the test.
pub struct Webhook {
    pub url: String,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    /// The status of each answer; `None` for none at all.
    answer: Option<u16>,
    /// A further line of its head.
    location: String,
    documents: Vec<Value>,
    /// Connections that wait for an answer.
    held: Vec<TcpStream>,
}

impl Webhook {
    /// Starts one that takes everything, at a URL with a secret in it.
    pub fn start(secret: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{secret}", listener.local_addr().unwrap());
        let shared = Arc::new(Mutex::new(Shared {
            answer: Some(200),
            location: String::new(),
            documents: Vec::new(),
            held: Vec::new(),
        }));
        let state = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serve(client, &state);
            }
        });
        Self { url, shared }
    }

    /// From now on, answers so.
    pub fn answer(&self, status: u16) {
        self.shared.lock().unwrap().answer = Some(status);
    }

    /// From now on, sends everybody elsewhere.
    pub fn redirect(&self, url: &str) {
        let mut shared = self.shared.lock().unwrap();
        (shared.answer, shared.location) = (Some(302), format!("Location: {url}\r\n"));
    }

    /// From now on, takes documents and does not answer.
    pub fn hang(&self) {
        self.shared.lock().unwrap().answer = None;
    }

    /// The documents that came since the last call.
    pub fn documents(&self) -> Vec<Value> {
        std::mem::take(&mut self.shared.lock().unwrap().documents)
    }
}

fn serve(client: TcpStream, shared: &Mutex<Shared>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    // Somebody may only look whether it listens.
    if length == 0 || reader.read_exact(&mut body).is_err() {
        return;
    }
    let mut shared = shared.lock().unwrap();
    shared.documents.push(serde_json::from_slice(&body).unwrap());
    match shared.answer {
        None => shared.held.push(client),
        Some(status) => {
            let mut client = client;
            let location = &shared.location;
            let answer = format!("HTTP/1.1 {status} -\r\n{location}Content-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = client.write_all(answer.as_bytes());
        }
    }
}
