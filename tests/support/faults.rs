//! A proxy that reads what passes, requests of HTTP or messages to PostgreSQL, and lets single ones, or their answers, come late, twice, cut, or
//! not at all. Nothing in it waits for a time: what is held waits until the test lets it go.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use super::wait_until;

/// What becomes of a request, or of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not arrive, and the connection ends.
    RequestLost,
    /// So many of its bytes arrive; then the connections end.
    RequestCut(usize),
    /// It arrives and is answered; the connection ends instead.
    ReplyLost,
    /// So many bytes of the answer pass; then the connections end.
    ReplyCut(usize),
    /// It arrives twice, one after the other, and the second answer passes.
    Repeated,
    /// It arrives when the test lets it go, whether somebody still waits for an answer or not.
    Held,
    /// It does not arrive, and the connection stays.
    Swallowed,
    /// It does not arrive, and is answered with this status and these headers, each with its line break.
    Answered(u16, &'static str),
    /// It does not arrive, and is answered with this status and body.
    Told(u16, &'static str),
    /// It is answered like that, and arrives just before the next one of its kind.
    Overtaken(u16, &'static str),
}

/// Every request from now on.
pub const ALWAYS: Range<usize> = 0..usize::MAX;
/// The next one.
pub const ONCE: Range<usize> = 0..1;

/// A running proxy; its threads end with the test.
pub struct FaultyProxy {
    /// `http://HOST:PORT`.
    pub url: String,
    state: Arc<State>,
}

struct State {
    server: String,
    shared: Mutex<Shared>,
    changed: Condvar,
}

#[derive(Default)]
struct Shared {
    rules: Vec<Rule>,
    /// Method and path of each request so far, and what happened to it.
    seen: Vec<(String, Option<Fault>)>,
    /// The first line and the headers of each request of HTTP so far.
    heads: Vec<String>,
    /// Status, method and path of each answer of a server of HTTP.
    answers: Vec<String>,
    /// Requests that are held, or on their way since they were let go.
    held: usize,
    /// How often those that are held were let go.
    released: usize,
    /// Method and path, and all, of a request that arrives before the next one like it.
    overtaken: Option<(String, Vec<u8>)>,
}

/// Those of the requests like `pattern` whose numbers are in `numbers` meet the fault.
struct Rule {
    pattern: String,
    numbers: Range<usize>,
    fault: Fault,
    count: usize,
}

impl FaultyProxy {
    /// Before a server that speaks HTTP at a URL.
    pub fn http(server_url: &str) -> Self {
        Self::start(server_url.strip_prefix("http://").unwrap(), State::serve_http)
    }

    /// Before the PostgreSQL at HOST:PORT; its clients must not ask for TLS. Requests are `Q` and the text of a simple query.
    pub fn postgres(server: &str) -> Self {
        Self::start(server, State::serve_postgres)
    }

    fn start(server: &str, serve: fn(&State, TcpStream) -> io::Result<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { server: server.to_owned(), shared: Mutex::default(), changed: Condvar::new() });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A connection that breaks has broken for both.
                thread::spawn(move || drop(serve(&state, client)));
            }
        });
        Self { url, state }
    }

    /// HOST:PORT.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Of the requests from now on that are like `pattern`, METHOD PATH with `*` for anything, those with these numbers meet the fault.
    pub fn inject(&self, pattern: &str, numbers: Range<usize>, fault: Fault) {
        self.shared().rules.push(Rule { pattern: pattern.to_owned(), numbers, fault, count: 0 });
    }

    /// From now on, all pass; what is held stays held.
    pub fn calm(&self) {
        self.shared().rules.clear();
    }

    /// How many requests met a fault so far.
    pub fn met(&self) -> usize {
        self.shared().seen.iter().filter(|(_, fault)| fault.is_some()).count()
    }

    /// Requests like `pattern` so far.
    pub fn count(&self, pattern: &str) -> usize {
        self.shared().seen.iter().filter(|(request, _)| is_like(request, pattern)).count()
    }

    /// The first line and the headers of the last request of HTTP whose path ends like this.
    pub fn last_head(&self, method: &str, end: &str) -> String {
        let (method, end) = (format!("{method} "), format!("{end} HTTP/1.1"));
        let is_it =
            |head: &&String| head.starts_with(&method) && head.lines().next().unwrap_or_default().ends_with(&end);
        self.shared().heads.iter().rfind(is_it).unwrap_or_else(|| panic!("no {method}..{end}")).clone()
    }

    /// STATUS METHOD PATH of all answers so far, which are forgotten.
    pub fn take_answers(&self) -> Vec<String> {
        std::mem::take(&mut self.shared().answers)
    }

    /// Waits until so many requests are held.
    pub fn wait_for_held(&self, count: usize) {
        wait_until("requests are held", || self.shared().held >= count);
    }

    /// Lets all go that are held, and waits until the server has answered them.
    pub fn release(&self) {
        self.shared().released += 1;
        self.state.changed.notify_all();
        wait_until("those that were held are answered", || self.shared().held == 0);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.state.shared.lock().unwrap()
    }
}

impl State {
    /// Notes a request, and says what becomes of it, and how often those that are held had been let go by then.
    fn fault_of(&self, request: &str) -> (Option<Fault>, usize) {
        let mut shared = self.shared.lock().unwrap();
        let mut found = None;
        for rule in shared.rules.iter_mut().filter(|rule| is_like(request, &rule.pattern)) {
            rule.count += 1;
            if rule.numbers.contains(&(rule.count - 1)) {
                found = found.or(Some(rule.fault));
            }
        }
        if found == Some(Fault::Held) {
            shared.held += 1;
        }
        shared.seen.push((request.to_owned(), found));
        (found, shared.released)
    }

    /// Waits until the test lets go what is held, once more than `released` times.
    fn wait(&self, released: usize) {
        let shared = self.shared.lock().unwrap();
        drop(self.changed.wait_while(shared, |shared| shared.released == released).unwrap());
    }

    fn serve_http(&self, mut client: TcpStream) -> io::Result<()> {
        let mut reader = Reader::new(client.try_clone()?);
        while let Some(request) = reader.message(Kind::Request)? {
            let line = request.first_line();
            let (fault, released) = self.fault_of(&line);
            self.shared.lock().unwrap().heads.push(request.head());
            let is_head = line.starts_with("HEAD ");
            let exchange = |bytes: &[u8]| -> io::Result<Vec<u8>> {
                let mut server = TcpStream::connect(&self.server)?;
                server.write_all(bytes)?;
                let answer = Reader::new(server).message(Kind::Answer { is_head })?;
                let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
                let first = answer.first_line();
                let status = first.split(' ').nth(1).unwrap_or_default();
                self.shared.lock().unwrap().answers.push(format!("{status} {line}"));
                Ok(answer.bytes)
            };
            let late = self.shared.lock().unwrap().overtaken.take_if(|(late, _)| *late == line);
            if let Some((_, bytes)) = late {
                exchange(&bytes)?;
            }
            match fault {
                None => client.write_all(&exchange(&request.bytes)?)?,
                Some(Fault::Repeated) => {
                    exchange(&request.bytes)?;
                    client.write_all(&exchange(&request.bytes)?)?;
                }
                Some(Fault::Held) => {
                    self.wait(released);
                    let answer = exchange(&request.bytes).unwrap_or_default();
                    self.shared.lock().unwrap().held -= 1;
                    client.write_all(&answer)?;
                }
                Some(Fault::RequestLost) => break,
                Some(Fault::RequestCut(length)) => {
                    let mut server = TcpStream::connect(&self.server)?;
                    server.write_all(&request.bytes[..length.min(request.bytes.len() - 1)])?;
                    break;
                }
                Some(Fault::ReplyLost) => {
                    exchange(&request.bytes)?;
                    break;
                }
                Some(Fault::ReplyCut(length)) => {
                    let answer = exchange(&request.bytes)?;
                    client.write_all(&answer[..length.min(answer.len() - 1)])?;
                    break;
                }
                // Until the client gives up.
                Some(Fault::Swallowed) => drop(client.read(&mut [0])?),
                Some(Fault::Answered(status, headers)) => {
                    let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n{headers}\r\n");
                    client.write_all(answer.as_bytes())?;
                }
                Some(Fault::Told(status, body) | Fault::Overtaken(status, body)) => {
                    if let Some(Fault::Overtaken(..)) = fault {
                        self.shared.lock().unwrap().overtaken = Some((line, request.bytes));
                    }
                    let body = if is_head { "" } else { body };
                    let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    client.write_all(answer.as_bytes())?;
                }
            }
        }
        client.shutdown(Shutdown::Both)
    }

    fn serve_postgres(&self, mut client: TcpStream) -> io::Result<()> {
        let mut server = TcpStream::connect(&self.server)?;
        // What becomes of the answers from now on.
        let of_answers = Mutex::new(None);
        thread::scope(|scope| {
            scope.spawn(|| drop(self.answers(&server, &client, &of_answers)));
            drop(self.messages(&client, &server, &of_answers));
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
        client.flush().and(server.flush())
    }

    fn messages(
        &self,
        mut client: &TcpStream,
        mut server: &TcpStream,
        of_answers: &Mutex<Option<Fault>>,
    ) -> io::Result<()> {
        let mut is_first = true;
        loop {
            let mut message = Vec::new();
            let length_at = usize::from(!is_first);
            client.take(length_at as u64 + 4).read_to_end(&mut message)?;
            let Some(length) = message.get(length_at..).and_then(|bytes| bytes.try_into().ok()) else { return Ok(()) };
            let length = u32::from_be_bytes(length) as usize - 4;
            client.take(length as u64).read_to_end(&mut message)?;
            is_first = false;
            let is_query = message[0] == b'Q' && length_at == 1;
            let text = String::from_utf8_lossy(message.get(5..).unwrap_or_default());
            let (fault, released) = match is_query {
                true => self.fault_of(&format!("Q {}", text.trim_end_matches('\0'))),
                false => (None, 0),
            };
            match fault {
                None => {}
                Some(Fault::RequestLost) => return Ok(()),
                Some(Fault::RequestCut(length)) => return server.write_all(&message[..length.min(message.len() - 1)]),
                Some(Fault::Swallowed) => return client.read(&mut [0]).map(drop),
                Some(Fault::Held) => {
                    self.wait(released);
                    *of_answers.lock().unwrap() = fault;
                }
                Some(Fault::ReplyLost | Fault::ReplyCut(_)) => *of_answers.lock().unwrap() = fault,
                Some(Fault::Repeated | Fault::Answered(..) | Fault::Told(..) | Fault::Overtaken(..)) => {
                    panic!("{fault:?} is for HTTP")
                }
            }
            server.write_all(&message)?;
            if fault == Some(Fault::Held) {
                // The client may be gone, which must not end the connection before the server has answered.
                let shared = self.shared.lock().unwrap();
                drop(self.changed.wait_while(shared, |_| of_answers.lock().unwrap().is_some()).unwrap());
            }
        }
    }

    fn answers(
        &self,
        mut server: &TcpStream,
        mut client: &TcpStream,
        of_answers: &Mutex<Option<Fault>>,
    ) -> io::Result<()> {
        let mut buffer = [0; 65_536];
        while let length @ 1.. = server.read(&mut buffer)? {
            let fault = *of_answers.lock().unwrap();
            let passes = match fault {
                Some(Fault::ReplyLost) => 0,
                Some(Fault::ReplyCut(limit)) => limit.min(length - 1),
                _ => length,
            };
            if fault == Some(Fault::Held) {
                let mut shared = self.shared.lock().unwrap();
                shared.held -= 1;
                *of_answers.lock().unwrap() = None;
                self.changed.notify_all();
            }
            client.write_all(&buffer[..passes])?;
            if passes < length {
                break;
            }
        }
        client.shutdown(Shutdown::Both)?;
        server.shutdown(Shutdown::Both)
    }
}

/// Reads whole messages of HTTP/1.1 from a connection.
struct Reader {
    stream: TcpStream,
    /// What was read beyond the last message.
    ahead: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Kind {
    Request,
    Answer { is_head: bool },
}

struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Its first line and its headers.
    fn head(&self) -> String {
        let end = self.bytes.windows(4).position(|window| window == b"\r\n\r\n");
        String::from_utf8_lossy(&self.bytes[..end.map_or(0, |end| end + 2)]).into_owned()
    }

    /// METHOD PATH.
    fn first_line(&self) -> String {
        let line = self.bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        line.rsplit_once(' ').map_or_else(|| line.to_string(), |(line, _)| line.to_owned())
    }
}

impl Reader {
    fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    /// The next message as it came, `None` at the end of the connection.
    fn message(&mut self, kind: Kind) -> io::Result<Option<Message>> {
        let Some(end) = self.find(0, b"\r\n\r\n")? else { return Ok(None) };
        let head = String::from_utf8_lossy(&self.ahead[..end]).to_lowercase();
        let header = |name: &str| {
            let lines = head.split("\r\n").skip(1);
            lines.filter_map(|line| line.split_once(':')).find(|(key, _)| *key == name).map(|(_, value)| value.trim())
        };
        let status = head.split(' ').nth(1).unwrap_or_default();
        let is_without_body = match kind {
            Kind::Request => false,
            Kind::Answer { is_head } => is_head || matches!(status, "204" | "304"),
        };
        let end = match header("content-length") {
            _ if is_without_body => end,
            Some(length) => end + length.parse::<usize>().map_err(io::Error::other)?,
            None if header("transfer-encoding") == Some("chunked") => self.end_of_chunks(end)?,
            None if matches!(kind, Kind::Request) => end,
            None => usize::MAX,
        };
        while self.ahead.len() < end {
            if self.more()? == 0 {
                match end {
                    usize::MAX => break,
                    _ => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
        let rest = self.ahead.split_off(end.min(self.ahead.len()));
        Ok(Some(Message { bytes: std::mem::replace(&mut self.ahead, rest) }))
    }

    fn end_of_chunks(&mut self, mut start: usize) -> io::Result<usize> {
        loop {
            let end = self.find(start, b"\r\n")?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let size = String::from_utf8_lossy(&self.ahead[start..end - 2]).into_owned();
            let size =
                usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16).map_err(io::Error::other)?;
            start = end + size + 2;
            if size == 0 {
                return Ok(start);
            }
        }
    }

    /// The end of the first `wanted` from `start` on, `None` where the connection ends before.
    fn find(&mut self, start: usize, wanted: &[u8]) -> io::Result<Option<usize>> {
        let mut from = start;
        loop {
            let bytes = self.ahead.get(from..).unwrap_or_default();
            if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
                return Ok(Some(from + at + wanted.len()));
            }
            from = from.max(self.ahead.len().saturating_sub(wanted.len()));
            if self.more()? == 0 {
                return Ok(None);
            }
        }
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 65_536];
        let length = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

/// Whether a text is like a pattern, in which each `*` stands for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}
