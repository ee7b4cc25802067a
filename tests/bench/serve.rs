//! An http server for one directory, in threads of this process: GET and HEAD, ranges, nothing else.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub struct Server {
    at: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    sent: AtomicU64,
    stop: AtomicBool,
}

impl Server {
    pub fn start(dir: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { dir: dir.to_owned(), sent, stop });
        let server = Server { at, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away early is none of our business.
                std::thread::spawn(move || drop(serve(&stream, &shared)));
            }
        });
        server
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.at)
    }

    /// Bytes of bodies that clients took, or that lay in the socket when they went.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.at);
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let mut words = head[0].split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let Ok(mut file) = File::open(shared.dir.join(path.trim_start_matches('/'))) else {
            (&*stream).write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let size = file.metadata()?.len();
        let range = head.iter().find_map(|l| {
            let (name, value) = l.split_once(':')?;
            name.eq_ignore_ascii_case("range").then(|| range(value.trim(), size)).flatten()
        });
        let (first, last) = range.unwrap_or((0, size.saturating_sub(1)));
        let mut answer = match range {
            Some(_) => {
                format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}\r\n")
            }
            None => "HTTP/1.1 200 OK\r\n".to_owned(),
        };
        let len = if size == 0 { 0 } else { last + 1 - first };
        answer += &format!("Content-Length: {len}\r\nAccept-Ranges: bytes\r\n\r\n");
        (&*stream).write_all(answer.as_bytes())?;
        if method != "HEAD" {
            file.seek(SeekFrom::Start(first))?;
            // In steps, so that what an early leaver did not take is not counted; each is a sendfile.
            let mut left = len;
            while left > 0 {
                let n = io::copy(&mut (&file).take(left.min(256 << 10)), &mut &*stream)?;
                shared.sent.fetch_add(n, Ordering::SeqCst);
                left -= n;
            }
        }
    }
}

/// `bytes=a-b`, `bytes=a-` and `bytes=-n`.
fn range(value: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let end = size.checked_sub(1)?;
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(a), Ok(b)) if a <= b && a <= end => Some((a, b.min(end))),
        (Ok(a), Err(_)) if a <= end => Some((a, end)),
        (Err(_), Ok(n)) if n > 0 => Some((size.saturating_sub(n), end)),
        _ => None,
    }
}
