//! HTTP that ends: every answer is checked against what it promised, a cut connection is taken up at
//! the very byte where it ended or not at all, and a request to stop ends a read in progress.

use std::io::Read as _;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, BodyReader, Timeout};

use super::{DataError, shown, url};
use crate::sys::Cancel;

const REDIRECTS: usize = 10;
/// After so many bytes a connection has earned new retries.
const PROGRESS: u64 = 64 << 20;

#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// For the name, the connection and the TLS handshake, each.
    pub connect_timeout: Duration,
    /// The longest silence of a server.
    pub stall_timeout: Duration,
    /// Before the first retry; twice and three times that before the next ones.
    pub retry_delay: Duration,
    /// After errors that may pass.
    pub retries: u32,
    /// PEM file with the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Do not verify certificates.
    pub insecure: bool,
    /// `http://[user:password@]host:port`; the environment is not looked at.
    pub proxy: Option<String>,
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            retry_delay: Duration::from_secs(2),
            retries: 3,
            ca_file: None,
            insecure: false,
            proxy: None,
        }
    }
}

/// What went wrong, and whether trying again may help.
struct Failure {
    error: DataError,
    again: bool,
}

impl Failure {
    fn last(error: DataError) -> Failure {
        Failure { error, again: false }
    }
}

pub(super) struct Client {
    agent: Agent,
    stall: Duration,
    retry_delay: Duration,
    retries: u32,
    /// Ends waits; `abort` sets it.
    stop: Cancel,
}

impl Client {
    pub(super) fn new(options: &HttpOptions, stop: Cancel) -> Result<Client, DataError> {
        // The crate's own default would be built-in authorities; sites add theirs to the system's.
        let roots = match &options.ca_file {
            None => RootCerts::PlatformVerifier,
            Some(path) => certificates(path)?,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(roots)
            .disable_verification(options.insecure)
            .build();
        let proxy = match &options.proxy {
            None => None,
            Some(text) => Some(
                ureq::Proxy::new(text)
                    .map_err(|_| DataError::BadUrl { url: shown(text), why: "not a proxy" })?,
            ),
        };
        let stall = options.stall_timeout;
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("onesdm/", env!("CARGO_PKG_VERSION")))
            // Digests are of the bytes of the file, not of a form the server makes for the way.
            .accept_encoding("identity")
            .input_buffer_size(256 << 10)
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .timeout_recv_response(Some(stall))
            .build();
        Ok(Client {
            agent: config.new_agent(),
            stall,
            retry_delay: options.retry_delay,
            retries: options.retries,
            stop,
        })
    }

    /// Ends requests and reads of other threads, now and later.
    pub(super) fn abort(&self) {
        self.stop.request();
        self.agent.clone().shutdown();
    }

    /// One request with its redirects; `headers` go to every hop.
    fn get(&self, url: &str, headers: &[(header::HeaderName, &str)]) -> Result<Response<Body>, Failure> {
        url::check(url).map_err(Failure::last)?;
        let mut at = url.to_owned();
        for _ in 0..=REDIRECTS {
            let request = headers.iter().fold(self.agent.get(&at), |r, (k, v)| r.header(k, *v));
            let response = request.call().map_err(|e| self.failure(&at, e))?;
            let status = response.status().as_u16();
            match status {
                301 | 302 | 303 | 307 | 308 => {
                    let location = text(response.headers(), &header::LOCATION).unwrap_or_default();
                    at = url::redirect(&at, location).map_err(Failure::last)?;
                }
                200..=299 => return Ok(response),
                _ => {
                    let again = matches!(status, 408 | 429 | 500..=599);
                    return Err(Failure { error: DataError::Status { url: shown(&at), status }, again });
                }
            }
        }
        Err(Failure::last(DataError::BadRedirect {
            url: shown(url),
            to: shown(&at),
            why: "too many redirects",
        }))
    }

    fn failure(&self, url: &str, e: ureq::Error) -> Failure {
        let url = shown(url);
        if self.stop.is_requested() {
            return Failure::last(DataError::Cancelled { phase: "fetching" });
        }
        let again = matches!(
            e,
            ureq::Error::Io(_)
                | ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve)
        );
        let why = match e {
            ureq::Error::Timeout(
                Timeout::PerRead | Timeout::PerWrite | Timeout::RecvResponse | Timeout::RecvBody,
            ) => {
                return Failure::last(DataError::Stalled { url, seconds: self.stall.as_secs() });
            }
            // These repeat the URL, secrets and all.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => "not a valid URL".to_owned(),
            ureq::Error::ConnectProxyFailed(_) => "the proxy refused".to_owned(),
            ureq::Error::Io(e) => e.to_string(),
            e => e.to_string(),
        };
        Failure { error: DataError::Unreachable { url, why }, again }
    }

    /// As `get`, tried again after connection errors and answers that may pass (5xx).
    pub(super) fn ask(
        &self,
        url: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<Response<Body>, DataError> {
        let mut tries = 0;
        loop {
            match self.get(url, headers) {
                Ok(response) => return Ok(response),
                Err(f) if f.again && tries < self.retries => self.pause(&mut tries)?,
                Err(f) => return Err(f.error),
            }
        }
    }

    fn pause(&self, tries: &mut u32) -> Result<(), DataError> {
        *tries += 1;
        if self.stop.wait(self.retry_delay * *tries) {
            Ok(())
        } else {
            Err(DataError::Cancelled { phase: "fetching" })
        }
    }

    /// Begins to download the whole of `url`.
    pub(super) fn download(&self, url: &str) -> Result<Download<'_>, DataError> {
        let response = self.ask(url, &[])?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(DataError::Status { url: shown(url), status });
        }
        let len = response.body().content_length();
        let validator = validator(response.headers());
        let body = response.into_body().into_reader();
        Ok(Download {
            client: self,
            url: url.to_owned(),
            body,
            pos: 0,
            len,
            validator,
            tries: 0,
            resumed_at: 0,
        })
    }

    /// The bytes of `range`, which lies within the `whole` bytes the content has; `None` when the server
    /// does not answer ranges or the content is another one.
    pub(super) fn range(
        &self,
        url: &str,
        range: &Range<u64>,
        whole: u64,
    ) -> Result<Option<Vec<u8>>, DataError> {
        let value = format!("bytes={}-{}", range.start, range.end - 1);
        let response = match self.ask(url, &[(header::RANGE, &value)]) {
            Err(DataError::Status { status: 416, .. }) => return Ok(None),
            other => other?,
        };
        if response.status() != 206 || content_range(response.headers()) != Some((range.start, Some(whole))) {
            return Ok(None);
        }
        let want = range.end - range.start;
        let mut bytes = Vec::new();
        let body = response.into_body().into_reader();
        body.take(want).read_to_end(&mut bytes).map_err(|e| self.failure(url, e.into()).error)?;
        Ok((bytes.len() as u64 == want).then_some(bytes))
    }
}

fn certificates(path: &std::path::Path) -> Result<RootCerts, DataError> {
    let pem = std::fs::read(path).map_err(DataError::io("reading the certificate authorities"))?;
    let mut certs = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(c)) => certs.push(c),
            Ok(_) => {}
            Err(_) => return Err(DataError::BadCertificates(path.to_owned())),
        }
    }
    if certs.is_empty() {
        return Err(DataError::BadCertificates(path.to_owned()));
    }
    Ok(RootCerts::new_with_certs(&certs))
}

fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// What names this very content: a strong ETag, else its date.
fn validator(headers: &HeaderMap) -> Option<(header::HeaderName, String)> {
    let etag = text(headers, &header::ETAG).filter(|e| e.starts_with('"'));
    let date = || text(headers, &header::LAST_MODIFIED).map(|d| (header::LAST_MODIFIED, d.to_owned()));
    etag.map(|e| (header::ETAG, e.to_owned())).or_else(date)
}

/// First byte and whole length of `bytes 5-9/10`; the length may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (unit, range) = text(headers, &header::CONTENT_RANGE)?.split_once(' ')?;
    let (span, whole) = range.split_once('/')?;
    let first = span.split_once('-')?.0.trim().parse().ok()?;
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    unit.eq_ignore_ascii_case("bytes").then_some((first, whole))
}

/// One body, read once from its first to its last byte, over as many connections as that takes.
pub(super) struct Download<'c> {
    client: &'c Client,
    url: String,
    body: BodyReader<'static>,
    pos: u64,
    len: Option<u64>,
    validator: Option<(header::HeaderName, String)>,
    tries: u32,
    resumed_at: u64,
}

impl Download<'_> {
    /// Bytes of the body, when the server says so before.
    pub(super) fn len(&self) -> Option<u64> {
        self.len
    }

    /// As `Read::read`; 0 means that everything the server promised is here.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<usize, DataError> {
        loop {
            let why = match self.body.read(buf) {
                Ok(0) if self.len.is_none_or(|len| self.pos == len) => return Ok(0),
                Ok(0) => "the connection was closed".to_owned(),
                Ok(n) => {
                    self.pos += n as u64;
                    return Ok(n);
                }
                Err(e) => match self.client.failure(&self.url, e.into()).error {
                    DataError::Unreachable { why, .. } => why,
                    other => return Err(other),
                },
            };
            if self.client.stop.is_requested() {
                return Err(DataError::Cancelled { phase: "fetching" });
            }
            self.resume(why)?;
        }
    }

    fn cut(&self, why: impl Into<String>) -> DataError {
        DataError::Cut { url: shown(&self.url), at: self.pos, len: self.len, why: why.into() }
    }

    /// A new connection for the bytes from `pos` on, only when they are certainly of the same content.
    fn resume(&mut self, mut why: String) -> Result<(), DataError> {
        let Some((kind, same)) = self.validator.clone() else {
            return Err(self.cut(format!("{why}; the server names no version, so going on is not safe")));
        };
        if self.pos - self.resumed_at >= PROGRESS {
            self.tries = 0;
        }
        let range = format!("bytes={}-", self.pos);
        let headers = [(header::RANGE, range.as_str()), (header::IF_RANGE, same.as_str())];
        while self.tries < self.client.retries {
            self.client.pause(&mut self.tries)?;
            let response = match self.client.get(&self.url, &headers) {
                Ok(response) => response,
                Err(f) if f.again => {
                    why = f.error.to_string();
                    continue;
                }
                Err(f) if matches!(f.error, DataError::Cancelled { .. } | DataError::Stalled { .. }) => {
                    return Err(f.error);
                }
                Err(f) => return Err(self.cut(format!("{why}; {}", f.error))),
            };
            let got = response.headers();
            // Some servers look at Range but not at If-Range.
            let changed = text(got, &kind).is_some_and(|now| now != same);
            if changed || response.status() != 206 {
                return Err(
                    self.cut(format!("{why}; the content changed or the server cannot go on from there"))
                );
            }
            let fits = content_range(got).is_some_and(|(first, whole)| {
                first == self.pos && (whole.is_none() || self.len.is_none() || whole == self.len)
            });
            let rest = response.body().content_length();
            let fits_rest = self.len.is_none_or(|len| rest.is_none_or(|r| r == len - self.pos));
            if !fits || !fits_rest {
                return Err(self.cut(format!("{why}; the server went on at another place than asked")));
            }
            self.resumed_at = self.pos;
            self.body = response.into_body().into_reader();
            return Ok(());
        }
        Err(self.cut(why))
    }
}
