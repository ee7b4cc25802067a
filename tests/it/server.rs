//! An HTTP/1.1 server on the loopback, one thread per connection, that does what a test's script says and
//! counts what it sent; and one that speaks TLS with a certificate nobody knows.

use crate::bed::{self, Bed, tool};
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request as it came: the first line and the header lines.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: String,
    /// How many came before it.
    pub nth: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }
    /// The first byte asked for.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok()
    }
}

/// The way back to the client. Errors end the script: a client that goes away is often the point.
pub struct Out {
    stream: TcpStream,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Out {
    /// Bytes as they are; those after the head are counted.
    pub fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(64 << 10) {
            self.stream.write_all(part)?;
            self.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    }
    /// Bytes as they are, not counted.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }
    /// `200 OK` and such, with these header lines.
    pub fn head(&mut self, status: &str, headers: &[&str]) -> io::Result<()> {
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        write!(self.stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")
    }
    pub fn whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.head("200 OK", &[&format!("Content-Length: {}", bytes.len())])?;
        self.body(bytes)
    }
    pub fn status(&mut self, status: &str, headers: &[&str]) -> io::Result<()> {
        self.head(status, &[&["Content-Length: 0"], headers].concat())
    }
    /// A well-behaved answer, by Range and If-Range when asked; cut after `upto` bytes of the content.
    pub fn ranged(&mut self, asked: &Asked, bytes: &[u8], etag: &str, upto: usize) -> io::Result<()> {
        let tag = format!("ETag: {etag}");
        let same = asked.header("if-range").is_none_or(|v| v == etag);
        match asked.range().filter(|from| same && *from < bytes.len()) {
            None => self.head("200 OK", &[&tag, &format!("Content-Length: {}", bytes.len())])?,
            Some(from) => {
                let span = format!("Content-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                let len = format!("Content-Length: {}", bytes.len() - from);
                self.head("206 Partial Content", &[&tag, &span, &len])?;
            }
        }
        let from = asked.range().filter(|_| same).unwrap_or(0);
        self.body(bytes.get(from..upto.min(bytes.len())).unwrap_or_default())
    }
    /// Says nothing until the test is over.
    pub fn silence(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

type Script = dyn Fn(&Asked, &mut Out) -> io::Result<()> + Send + Sync;

pub struct Server {
    address: String,
    seen: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(script: impl Fn(&Asked, &mut Out) -> io::Result<()> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, sent, stop): (Arc<Mutex<Vec<Asked>>>, Arc<AtomicU64>, Arc<AtomicBool>) =
            Default::default();
        let (log, count, over) = (seen.clone(), sent.clone(), stop.clone());
        let script: Arc<Script> = Arc::new(script);
        let thread = std::thread::spawn(move || {
            let mut workers = Vec::new();
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let out = Out { stream, sent: count.clone(), stop: over.clone() };
                let (script, log) = (script.clone(), log.clone());
                workers.push(std::thread::spawn(move || drop(answer(out, &*script, &log))));
            }
            for worker in workers {
                worker.join().unwrap();
            }
        });
        Server { address, seen, sent, stop, thread: Some(thread) }
    }

    /// Serves `bytes` to whoever asks.
    pub fn of(bytes: Vec<u8>) -> Server {
        Server::new(move |asked, out| out.ranged(asked, &bytes, "\"1\"", usize::MAX))
    }

    /// Sends the beginning of an image, and then nothing more.
    pub fn stalled() -> Server {
        Server::new(|_, out| {
            out.head("200 OK", &["Content-Length: 100000"])?;
            out.body(&[7; 5000])?;
            out.silence();
            Ok(())
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/image", self.address)
    }
    /// The same with a user, a password and a signed query.
    pub fn secret_url(&self) -> String {
        format!("http://hidden-user:hidden-pass@{}/image?sig=hidden-query#hidden-part", self.address)
    }
    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }
    /// Bytes of bodies handed to the network.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut out: Out, script: &Script, log: &Mutex<Vec<Asked>>) -> io::Result<()> {
    let mut head = String::new();
    let mut input = BufReader::new(out.stream.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if input.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let asked = {
        let mut log = log.lock().unwrap();
        let nth = log.len();
        log.push(Asked { head, nth });
        log[nth].clone()
    };
    script(&asked, &mut out)?;
    // Closing with unread input would be a reset, which may overtake the answer.
    out.stream.shutdown(Shutdown::Write)?;
    out.stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let _ = out.stream.read(&mut [0; 64]);
    Ok(())
}

/// A server with TLS and a certificate for 127.0.0.1 that no authority signed.
pub struct Tls {
    server: Child,
    port: String,
    pub certificate: PathBuf,
}

impl Tls {
    /// Serves `bytes` as `/image`.
    pub fn of(bed: &Bed, bytes: &[u8]) -> Tls {
        let dir = bed.root().join("tls");
        std::fs::create_dir(&dir).unwrap();
        let (key, certificate) = (dir.join("key.pem"), dir.join("cert.pem"));
        let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1";
        let mut args: Vec<_> = words.split(' ').map(AsRef::as_ref).collect();
        args.extend(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()]);
        tool("openssl", &args);
        bed::chmod(&certificate, 0o644);
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
        std::fs::write(dir.join("image"), [head.as_bytes(), bytes].concat()).unwrap();
        let mut server = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-HTTP", "-key"])
            .arg(&key)
            .arg("-cert")
            .arg(&certificate)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the suite needs openssl (packaging/setup installs it)");
        let mut said = BufReader::new(server.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ACCEPT") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "openssl s_server did not start");
        }
        // Whoever stops reading stops the server.
        std::thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        let port = line.trim().rsplit(':').next().unwrap().to_owned();
        Tls { server, port, certificate }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/image", self.port)
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What a tool makes of a file, on its stdout.
pub fn packed(program: &str, args: &[&str], file: &Path) -> Vec<u8> {
    let out = Command::new(program).args(args).arg(file).output();
    let out = out.unwrap_or_else(|e| panic!("the suite needs {program}: {e} (packaging/setup installs it)"));
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}
