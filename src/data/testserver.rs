//! A small HTTP/1.1 server on the loopback that misbehaves as told, one script per request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is done with one request. The last script of a server is used for all further requests.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// The content, by Range when asked, with this ETag.
    Serve { etag: &'static str },
    /// The whole content whatever Range says.
    IgnoreRange,
    /// No length: chunked.
    Chunked,
    /// The header promises `promise` bytes; the content follows and the connection closes.
    Promise(usize),
    /// As `Serve`, but the connection is cut after this many bytes of the body.
    Cut { after: usize, etag: &'static str },
    /// Chunked, cut after this many bytes.
    CutChunked { after: usize },
    /// As `Serve`, but If-Range is not looked at.
    IgnoreIfRange { etag: &'static str },
    /// A Range is answered with 206 but from another place.
    WrongRange { etag: &'static str },
    /// This many bytes of the body, then silence.
    Stall { after: usize },
    /// Accepts and says nothing.
    Silent,
    /// Only this status, or a redirect when it has a location.
    Status(u16, String),
    /// The content again and again, without end.
    Endless,
    /// The connection is closed at once.
    Close,
}

pub(super) struct Server {
    pub(super) url: String,
    /// Request heads as they came.
    pub(super) seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(content: Vec<u8>, scripts: &[Script]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/image", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, done, scripts) = (Arc::clone(&seen), Arc::clone(&stop), scripts.to_vec());
        let thread = std::thread::spawn(move || {
            let content = Arc::new(content);
            let mut workers = Vec::new();
            for stream in listener.incoming() {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let (log, done, content, scripts) =
                    (log.clone(), done.clone(), content.clone(), scripts.clone());
                workers.push(std::thread::spawn(move || {
                    // A client that goes away is what some tests are about.
                    let _ = serve(&stream, &content, &scripts, &log, &done);
                }));
            }
            for worker in workers {
                worker.join().unwrap();
            }
        });
        Server { url, seen, stop, thread: Some(thread) }
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://").trim_end_matches("/image"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut out: &TcpStream,
    content: &[u8],
    scripts: &[Script],
    log: &Mutex<Vec<String>>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut input = BufReader::new(out);
    while !head.ends_with("\r\n\r\n") {
        if input.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let script = {
        let mut log = log.lock().unwrap();
        log.push(head.clone());
        scripts[(log.len() - 1).min(scripts.len() - 1)].clone()
    };
    let ok = |len: usize| format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n");
    let hold = || {
        while !stop.load(Ordering::SeqCst) {
            #[expect(clippy::disallowed_methods, reason = "a server that waits")]
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    match script {
        Script::Serve { etag } => ranged(out, content, &head, etag, usize::MAX, 0)?,
        Script::Cut { after, etag } => ranged(out, content, &head, etag, after, 0)?,
        Script::IgnoreIfRange { etag } => {
            let head = head.to_ascii_lowercase().replace("if-range", "x-ignored");
            ranged(out, content, &head, etag, usize::MAX, 0)?;
        }
        Script::WrongRange { etag } => ranged(out, content, &head, etag, usize::MAX, 1)?,
        Script::IgnoreRange => {
            out.write_all(ok(content.len()).as_bytes())?;
            out.write_all(content)?;
        }
        Script::Chunked | Script::CutChunked { .. } => {
            out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let end = if let Script::CutChunked { after } = script { after } else { content.len() };
            for chunk in content[..end].chunks(10_007) {
                write!(out, "{:x}\r\n", chunk.len())?;
                out.write_all(chunk)?;
                out.write_all(b"\r\n")?;
            }
            if matches!(script, Script::Chunked) {
                out.write_all(b"0\r\n\r\n")?;
            }
        }
        Script::Promise(len) => {
            out.write_all(ok(len).as_bytes())?;
            out.write_all(content)?;
        }
        Script::Stall { after } => {
            out.write_all(ok(content.len()).as_bytes())?;
            out.write_all(&content[..after])?;
            hold();
        }
        Script::Silent => hold(),
        Script::Status(code, location) => {
            write!(out, "HTTP/1.1 {code} Told So\r\nConnection: close\r\nContent-Length: 0\r\n")?;
            if !location.is_empty() {
                write!(out, "Location: {location}\r\n")?;
            }
            out.write_all(b"\r\n")?;
        }
        Script::Endless => {
            out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            while !stop.load(Ordering::SeqCst) {
                out.write_all(content)?;
            }
        }
        Script::Close => {}
    }
    // Closing with unread input would be a reset, which may overtake the answer.
    out.shutdown(std::net::Shutdown::Write)?;
    out.set_read_timeout(Some(Duration::from_millis(200)))?;
    let _ = out.read(&mut [0; 64]);
    Ok(())
}

/// Serves by Range and If-Range; `shift` lies about where the answer begins.
fn ranged(
    mut out: &TcpStream,
    content: &[u8],
    head: &str,
    etag: &str,
    cut: usize,
    shift: usize,
) -> std::io::Result<()> {
    let field = |name: &str| {
        head.lines()
            .find_map(|l| l.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v))
    };
    let same = field("if-range").is_none_or(|v| v == etag);
    let range = field("range")
        .and_then(|r| r.strip_prefix("bytes="))
        .and_then(|r| r.split_once('-'))
        .filter(|_| same);
    let len = content.len();
    let (start, end) = match range {
        None => (0, len),
        Some(("", tail)) => (len.saturating_sub(tail.parse().unwrap_or(0)), len),
        Some((first, "")) => (first.parse().unwrap_or(0), len),
        Some((first, last)) => {
            (first.parse().unwrap_or(0), last.parse::<usize>().unwrap_or(0).saturating_add(1).min(len))
        }
    };
    if range.is_some() && start >= len {
        return write!(
            out,
            "HTTP/1.1 416 No\r\nConnection: close\r\nContent-Range: bytes */{len}\r\nContent-Length: 0\r\n\r\n"
        );
    }
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", end - start);
    if !etag.is_empty() {
        answer = format!("{answer}ETag: {etag}\r\n");
    }
    if range.is_some() {
        answer = format!("{answer}Content-Range: bytes {}-{}/{len}\r\n", start + shift, end - 1);
    }
    out.write_all((answer + "\r\n").as_bytes())?;
    out.write_all(&content[start..end.min(start.saturating_add(cut))])
}
