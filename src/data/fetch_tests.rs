use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use super::*;
use crate::data::compress::tests::{ALL, pack};
use crate::data::testserver::{Script, Server};
use crate::data::{Algo, Progress};
use crate::sys::Class;

/// A mebibyte of data, three of zeros, some more data and zeros to the end.
fn image() -> Vec<u8> {
    let mut n = 1u32;
    let mut data: Vec<u8> = std::iter::repeat_with(|| {
        n ^= n << 13;
        n ^= n >> 17;
        n ^= n << 5;
        (n & 0x3f) as u8
    })
    .take(1 << 20)
    .collect();
    data.resize(4 << 20, 0);
    data.extend_from_slice(&[7; 5000]);
    data.resize(5 << 20, 0);
    data
}

fn digest(algo: Algo, data: &[u8]) -> Expected {
    let mut hasher = algo.hasher();
    hasher.update(data);
    let mut out = vec![0; hasher.output_size()];
    hasher.finalize_into_reset(&mut out).unwrap();
    let hex: String =
        out.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|d| char::from_digit(d.into(), 16)).collect();
    Expected::parse(algo, &hex).unwrap()
}

fn options() -> FetchOptions {
    FetchOptions {
        http: HttpOptions {
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(1),
            retry_delay: Duration::from_millis(1),
            ..HttpOptions::default()
        },
        ..FetchOptions::default()
    }
}

fn file(data: &[u8]) -> Source {
    let mut f = tempfile::tempfile().unwrap();
    f.write_all(data).unwrap();
    Source::File(f)
}

fn content(mut f: &File) -> Vec<u8> {
    let mut out = Vec::new();
    f.rewind().unwrap();
    f.read_to_end(&mut out).unwrap();
    out
}

fn get(source: &Source, opts: &FetchOptions) -> (Result<Fetched, DataError>, File) {
    let dst = tempfile::tempfile().unwrap();
    (fetch(source, &dst, opts, &Watch::default()), dst)
}

fn from(server: &Server) -> Source {
    Source::Http(server.url.clone())
}

const E: &str = "\"one\"";

#[test]
fn every_compression_and_digest_from_files_and_servers() {
    let image = image();
    let all = [Compression::None, ALL[0], ALL[1], ALL[2], ALL[3]];
    for kind in all {
        let packed = pack(kind, &image);
        let mut opts = options();
        opts.digests =
            [Algo::Md5, Algo::Sha1, Algo::Sha256, Algo::Sha512].map(|a| digest(a, &packed)).to_vec();
        let served = Server::start(packed.clone(), &[Script::Serve { etag: E }]);
        let chunked = Server::start(packed.clone(), &[Script::Chunked]);
        for source in [file(&packed), from(&served), from(&chunked)] {
            let (got, dst) = get(&source, &opts);
            let want = Fetched {
                written: image.len() as u64,
                transferred: packed.len() as u64,
                compression: kind,
                method: Method::Sparse,
            };
            assert_eq!(got.unwrap(), want);
            assert_eq!(content(&dst), image);
            assert!(dst.metadata().unwrap().blocks() * 512 < 2 << 20, "{kind}: zeros are holes");
        }
        opts.decompress = false;
        let (got, dst) = get(&from(&served), &opts);
        assert_eq!(got.unwrap().compression, Compression::None);
        assert_eq!(content(&dst), packed);
    }
}

#[test]
fn one_wrong_digest_of_several_is_enough() {
    let packed = pack(Compression::Zstd, &image());
    for wrong in 0..2 {
        let mut opts = options();
        opts.digests = vec![digest(Algo::Md5, &packed), digest(Algo::Sha256, &packed)];
        opts.digests[wrong] = digest(opts.digests[wrong].algo(), b"other");
        let (got, _) = get(&file(&packed), &opts);
        let e = got.unwrap_err();
        assert!(
            matches!(&e, DataError::DigestMismatch { algo, .. } if *algo == opts.digests[wrong].algo()),
            "{e}"
        );
        assert_eq!(e.class(), Class::Integrity);
    }
}

#[test]
fn plain_files_are_copied_and_full_means_full() {
    let image = image();
    for (sparse, most) in [(Sparse::Keep, false), (Sparse::Full, true)] {
        for limit in [None, Some(1 << 40)] {
            let (got, dst) = get(&file(&image), &FetchOptions { limit, sparse, ..options() });
            assert_eq!(got.unwrap().written, image.len() as u64);
            assert_eq!(content(&dst), image);
            assert!(!most || dst.metadata().unwrap().blocks() * 512 >= image.len() as u64);
        }
    }
}

#[test]
fn what_servers_do_wrong_is_an_error_or_put_right() {
    let image = image();
    let len = image.len();
    let cut = |after| Script::Cut { after, etag: E };
    let serve = Script::Serve { etag: E };
    let status = |code, to: &str| Script::Status(code, to.to_owned());
    let ok = None;
    // name, scripts, class of the error, requests made
    let cases: Vec<(&str, Vec<Script>, Option<Class>, usize)> = vec![
        ("500 then fine", vec![status(500, ""), serve.clone()], ok, 2),
        ("closed, then fine", vec![Script::Close, Script::Close, serve.clone()], ok, 3),
        ("500 for ever", vec![status(503, "")], Some(Class::Remote), 4),
        ("404 is not tried again", vec![status(404, "")], Some(Class::NotFound), 1),
        ("204 has no content", vec![status(204, "")], Some(Class::Remote), 1),
        ("cut, goes on", vec![cut(len / 3), cut(len / 3), serve.clone()], ok, 3),
        ("cut before the first byte", vec![cut(0), serve.clone()], ok, 2),
        ("cut, unavailable, goes on", vec![cut(1000), status(503, ""), serve.clone()], ok, 3),
        ("cut too often", vec![cut(10)], Some(Class::Remote), 4),
        ("cut, Range ignored", vec![cut(1000), Script::IgnoreRange], Some(Class::Remote), 2),
        ("cut, changed", vec![cut(1000), Script::Serve { etag: "\"two\"" }], Some(Class::Remote), 2),
        (
            "cut, changed, If-Range ignored",
            vec![cut(1000), Script::WrongRange { etag: E }],
            Some(Class::Remote),
            2,
        ),
        (
            "cut, changed, If-Range ignored",
            vec![cut(1000), Script::IgnoreIfRange { etag: "\"two\"" }],
            Some(Class::Remote),
            2,
        ),
        ("cut, gone", vec![cut(1000), status(404, "")], Some(Class::Remote), 2),
        (
            "cut, no version",
            vec![Script::Cut { after: 1000, etag: "" }, serve.clone()],
            Some(Class::Remote),
            1,
        ),
        (
            "cut, weak version",
            vec![Script::Cut { after: 1000, etag: "W/\"1\"" }, serve.clone()],
            Some(Class::Remote),
            1,
        ),
        ("chunked and cut", vec![Script::CutChunked { after: 20_000 }], Some(Class::Remote), 1),
        ("promises more", vec![Script::Promise(len + 1)], Some(Class::Remote), 1),
        ("stalls", vec![Script::Stall { after: 1000 }], Some(Class::Timeout), 1),
        ("silent", vec![Script::Silent], Some(Class::Timeout), 1),
        ("to a file", vec![status(302, "file:///etc/passwd")], Some(Class::Refused), 1),
        ("in a circle", vec![status(302, "/image")], Some(Class::Refused), 11),
        ("twice, then there", vec![status(301, "/a"), status(307, "b?c"), serve.clone()], ok, 3),
        ("nowhere", vec![status(302, "")], Some(Class::Refused), 1),
    ];
    for (name, scripts, class, requests) in cases {
        let server = Server::start(image.clone(), &scripts);
        let start = Instant::now();
        let (got, dst) = get(&from(&server), &options());
        match (class, got) {
            (None, got) => {
                let got = got.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!((got.transferred, got.written), (len as u64, len as u64), "{name}");
                assert!(content(&dst) == image, "{name}: content");
            }
            (Some(class), Err(e)) => assert_eq!(e.class(), class, "{name}: {e}"),
            (Some(_), Ok(_)) => panic!("{name}: not seen"),
        }
        assert_eq!(server.requests(), requests, "{name}");
        assert!(start.elapsed() < Duration::from_secs(3), "{name}: {:?}", start.elapsed());
    }
}

#[test]
fn a_body_longer_than_promised_is_cut_at_the_promise() {
    let image = image();
    let server = Server::start(image.clone(), &[Script::Promise(1000)]);
    let (got, dst) = get(&from(&server), &options());
    assert_eq!(got.unwrap().written, 1000);
    assert_eq!(content(&dst), image[..1000]);
}

#[test]
fn resumed_requests_ask_for_the_rest_of_the_same_content() {
    let server =
        Server::start(image(), &[Script::Cut { after: 1 << 20, etag: E }, Script::Serve { etag: E }]);
    get(&from(&server), &options()).0.unwrap();
    let second = server.seen.lock().unwrap()[1].to_ascii_lowercase();
    assert!(
        second.contains("range: bytes=1048576-\r\n") && second.contains("if-range: \"one\"\r\n"),
        "{second}"
    );
}

#[test]
fn bombs_end_at_the_limit() {
    let zeros = vec![0; 8 << 20];
    for kind in ALL {
        let bomb = pack(kind, &zeros);
        let opts = FetchOptions { max_size: 1 << 20, ..options() };
        // Endless members of a bomb, without a length.
        let server = Server::start(bomb.clone(), &[Script::Endless]);
        for source in [file(&bomb), from(&server)] {
            let e = get(&source, &opts).0.unwrap_err();
            assert!(matches!(e, DataError::TooLarge { limit: 1_048_576 }), "{kind}: {e}");
            assert_eq!(e.class(), Class::Refused);
        }
    }
    let opts = FetchOptions { max_size: zeros.len() as u64, ..options() };
    assert_eq!(
        get(&file(&pack(ALL[3], &zeros)), &opts).0.unwrap().written,
        8 << 20,
        "exactly the limit is allowed"
    );
    let opts = FetchOptions { max_size: 100, ..options() };
    assert!(matches!(get(&file(&zeros), &opts).0, Err(DataError::TooLarge { .. })), "plain");
}

#[test]
fn damaged_streams_are_errors() {
    for kind in ALL {
        let mut packed = pack(kind, &image());
        packed.extend_from_slice(b"garbage");
        let e = get(&file(&packed), &options()).0.unwrap_err();
        assert!(matches!(e, DataError::Corrupt { compression, .. } if compression == kind), "{kind}: {e}");
        packed.truncate(packed.len() / 2);
        let server = Server::start(packed.clone(), &[Script::Serve { etag: E }]);
        let e = get(&from(&server), &options()).0.unwrap_err();
        assert!(matches!(e, DataError::Corrupt { .. }), "{kind}: {e}");
    }
}

/// Asks to stop as soon as so many bytes came.
struct StopAt(u64, std::sync::atomic::AtomicU64, Cancel);

impl Progress for StopAt {
    fn total(&self, _: u64) {}
    fn add(&self, n: u64) {
        if self.1.fetch_add(n, std::sync::atomic::Ordering::SeqCst) + n >= self.0 {
            self.2.request();
        }
    }
    fn phase(&self, _: &'static str) {}
}

#[test]
fn a_request_to_stop_ends_it_soon_wherever_it_waits() {
    let packed = pack(Compression::Gzip, &image());
    let opts = FetchOptions {
        http: HttpOptions { stall_timeout: Duration::from_secs(60), ..options().http },
        ..options()
    };
    let slow = FetchOptions { limit: Some(1000), ..opts.clone() };
    for (script, opts, at) in [
        (Script::Stall { after: 1000 }, &opts, 1),
        (Script::Endless, &opts, 3 << 20),
        (Script::Serve { etag: E }, &slow, 1),
    ] {
        let server = Server::start(packed.clone(), std::slice::from_ref(&script));
        let cancel = Cancel::default();
        let progress = Arc::new(StopAt(at, 0.into(), cancel.clone()));
        let dst = tempfile::tempfile().unwrap();
        let start = Instant::now();
        let got = fetch(&from(&server), &dst, opts, &Watch { cancel, progress });
        assert!(matches!(got, Err(DataError::Cancelled { .. })), "{script:?}: {got:?}");
        assert!(start.elapsed() < Duration::from_secs(1), "{script:?}");
    }
    // Before the server answers at all.
    let server = Server::start(Vec::new(), &[Script::Silent]);
    let cancel = Cancel::default();
    let watch = Watch::silent(cancel.clone());
    thread::scope(|s| {
        s.spawn(|| {
            while server.requests() == 0 {
                cancel.wait(Duration::from_millis(5));
            }
            cancel.request();
        });
        let start = Instant::now();
        let got = fetch(&from(&server), &tempfile::tempfile().unwrap(), &opts, &watch);
        assert!(matches!(got, Err(DataError::Cancelled { .. })), "{got:?}");
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn a_writer_that_fails_ends_all_stages() {
    // A descriptor for reading only: every write fails, as on a full file system.
    for (kind, script) in
        [(Compression::Gzip, Script::Endless), (Compression::None, Script::Stall { after: 3 << 20 })]
    {
        let server = Server::start(pack(kind, &image()), &[script]);
        let path = tempfile::NamedTempFile::new().unwrap();
        let dst = File::open(path.path()).unwrap();
        let opts = FetchOptions {
            http: HttpOptions { stall_timeout: Duration::from_secs(60), ..options().http },
            ..options()
        };
        let start = Instant::now();
        let got = fetch(&from(&server), &dst, &opts, &Watch::default());
        assert!(matches!(got, Err(DataError::Io { doing: "writing", .. })), "{got:?}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn the_limit_is_of_transferred_bytes() {
    let packed = pack(Compression::Gzip, &image()[..200_000]);
    let rate = packed.len() as u64 * 2;
    let start = Instant::now();
    get(&file(&packed), &FetchOptions { limit: Some(rate), ..options() }).0.unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(350) && took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn secrets_of_the_url_are_in_no_error() {
    let server = Server::start(Vec::new(), &[Script::Status(403, String::new())]);
    let http = server.url.replace("http://", "http://user:hunter2@") + "?sig=hunter2";
    for url in [
        http.as_str(),
        "http://user:hunter2@[::1/x",
        "http://user:hunter2@127.0.0.1:1/?hunter2",
        "ftp://u:hunter2@h/",
    ] {
        let e = get(&Source::Http(url.to_owned()), &options()).0.unwrap_err();
        assert!(!format!("{e} {e:?}").contains("hunter2"), "{e:?}");
    }
    assert!(
        server.seen.lock().unwrap()[0].to_ascii_lowercase().contains("authorization: basic"),
        "but it was used"
    );
}

#[test]
fn the_sink_may_be_memory() {
    let image = image();
    let memory = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let dst = File::from(memory);
    fetch(&file(&pack(ALL[2], &image)), &dst, &options(), &Watch::default()).unwrap();
    assert_eq!(content(&dst), image);
}
