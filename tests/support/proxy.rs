//! A TCP proxy before the server that cuts the answers to the SELECTs of one table short, lets them stall, or goes to another server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// The last, empty chunk of a chunked answer.
const END: &[u8] = b"0\r\n\r\n";
/// Limit that stands for an answer without [`END`].
const ALL_BUT_END: usize = usize::MAX - 1;

/// A running proxy; its threads end with the test.
pub struct Proxy {
    pub url: String,
    state: Arc<State>,
}

struct State {
    /// Where new connections go.
    server: Mutex<String>,
    /// The clients' ends of all connections so far.
    clients: Mutex<Vec<TcpStream>>,
    /// The quoted name of the table; `None` where all bytes of a connection count, which nobody can read.
    table: Option<String>,
    /// Bytes of an answer that may pass.
    limit: AtomicUsize,
    /// Whether the connection stays open after them.
    stalls: AtomicBool,
    /// Whether only the first answer is limited.
    once: AtomicBool,
    /// Length of the longest answer so far.
    longest: AtomicUsize,
}

impl Proxy {
    /// Starts one for the answers in Parquet to queries over `table`; all others pass.
    pub fn start(server_url: &str, table: &str) -> Self {
        Self::of(server_url, Some(format!("`{table}`")))
    }

    /// Starts one for a server whose answers are encrypted: limits are those of the bytes of a connection.
    pub fn blind(server_url: &str) -> Self {
        Self::of(server_url, None)
    }

    fn of(server_url: &str, table: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            server: Mutex::new(address(server_url)),
            clients: Mutex::default(),
            table,
            limit: AtomicUsize::new(usize::MAX),
            stalls: AtomicBool::new(false),
            once: AtomicBool::new(false),
            longest: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(client));
            }
        });
        Self { url, state }
    }

    /// From now on, all but the last bytes of an answer pass: the empty chunk by which HTTP says that it is whole.
    pub fn cut_before_end(&self) {
        self.cut_after(ALL_BUT_END);
    }

    /// From now on, at most `limit` bytes of an answer pass; then the connection ends.
    pub fn cut_after(&self, limit: usize) {
        self.state.stalls.store(false, Ordering::SeqCst);
        self.state.limit.store(limit, Ordering::SeqCst);
    }

    /// At most `limit` bytes of the next answer pass; those after it pass whole.
    pub fn cut_once_after(&self, limit: usize) {
        self.state.once.store(true, Ordering::SeqCst);
        self.cut_after(limit);
    }

    /// Ends all connections; new ones go to another server.
    pub fn go_to(&self, server_url: &str) {
        *self.state.server.lock().unwrap() = address(server_url);
        for client in self.state.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// From now on, at most `limit` bytes of an answer pass; then nothing more comes, and the connection stays.
    pub fn stall_after(&self, limit: usize) {
        self.state.stalls.store(true, Ordering::SeqCst);
        self.state.limit.store(limit, Ordering::SeqCst);
    }

    /// From now on, answers pass whole.
    pub fn let_pass(&self) {
        self.cut_after(usize::MAX);
    }

    /// Bytes of the longest answer so far, with its HTTP frame.
    pub fn longest(&self) -> usize {
        self.state.longest.load(Ordering::SeqCst)
    }
}

impl State {
    fn serve(&self, client: TcpStream) {
        let server = self.server.lock().unwrap().clone();
        let Ok(server) = TcpStream::connect(server) else { return };
        self.clients.lock().unwrap().push(client.try_clone().unwrap());
        let passed = Mutex::new(self.table.is_none().then_some(0));
        thread::scope(|scope| {
            scope.spawn(|| self.requests(&client, &server, &passed));
            self.answers(&server, &client, &passed);
        });
    }

    /// Passes requests on; one that asks for the table's Parquet sets the count of its answer's bytes to zero, any other clears it.
    fn requests(&self, mut client: &TcpStream, mut server: &TcpStream, passed: &Mutex<Option<usize>>) {
        let mut buffer = [0; 65_536];
        let mut request = Vec::new();
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            if let Some(table) = &self.table {
                if buffer.starts_with(b"POST /") {
                    request.clear();
                    *passed.lock().unwrap() = None;
                }
                request.extend_from_slice(&buffer[..length]);
                let for_parquet = contains(&request, b"FORMAT Parquet") || contains(&request, b"=Parquet");
                if for_parquet && contains(&request, table.as_bytes()) {
                    *passed.lock().unwrap() = Some(0);
                }
            }
            if server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    }

    fn answers(&self, mut server: &TcpStream, mut client: &TcpStream, passed: &Mutex<Option<usize>>) {
        let mut buffer = [0; 65_536];
        while let Ok(length @ 1..) = server.read(&mut buffer) {
            let mut pass = length;
            if let Some(passed) = passed.lock().unwrap().as_mut() {
                let limit = self.limit.load(Ordering::SeqCst);
                pass = length.min(limit.saturating_sub(*passed));
                if limit == ALL_BUT_END && buffer[..length].ends_with(END) {
                    pass = length - END.len();
                }
                *passed += pass;
                self.longest.fetch_max(*passed, Ordering::SeqCst);
            }
            let ends = pass < length && !self.stalls.load(Ordering::SeqCst);
            if ends && self.once.load(Ordering::SeqCst) {
                self.limit.store(usize::MAX, Ordering::SeqCst);
            }
            if client.write_all(&buffer[..pass]).is_err() || ends {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}

fn address(url: &str) -> String {
    url.strip_prefix("http://").unwrap().to_owned()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
