//! What reads bytes of others, one function each, with what must hold whatever the bytes are. cargo-fuzz
//! looks for inputs (see Cargo.toml here); the ordinary suite replays those that were kept.

use onesdm::cli::invocation::Invocation;
use onesdm::config::parse_rc;
use onesdm::host::wire::{Decoder, Frame};
use onesdm::image::{Admit, admit, probe_bytes};
use onesdm::one::{
    Datastores, DsCall, DsDump, HostDoc, HostPath, ImageDoc, OneError, TmCall, Vm, VmPath, image_path,
    read_answer, source_name,
};
use onesdm::sdm::record::{Commit, Header, Intent, decode, encode};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path};

pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 10] = [
    ("dump", dump),
    ("argv", argv),
    ("documents", documents),
    ("tm_call", tm_call),
    ("host_path", host_path),
    ("image", image),
    ("frames", frames),
    ("records", records),
    ("xmlrpc", xmlrpc),
    ("rc", rc),
];

const STORES: &str = "/var/lib/one/datastores";

/// A refusal is something to print for somebody: not empty, and not as long as its sender likes.
fn refused<T>(r: Result<T, OneError>) -> Option<T> {
    r.map_err(|e| {
        let line = e.to_string();
        assert!(!line.is_empty() && line.len() < 64 << 10, "{} bytes", line.len());
    })
    .ok()
}

/// A path that came out of a parser is absolute and leads nowhere upwards.
fn plain(path: &Path) {
    assert!(path.is_absolute() && path.components().all(|c| c != Component::ParentDir), "{}", path.display());
}

/// A datastore message as it comes on stdin, base64 or XML.
fn dump(data: &[u8]) {
    let Some(call) = refused(DsCall::from(&["7".into()], data)) else { return };
    let Some(dump) = refused(DsDump::parse(&call.dump)) else { return };
    drop(dump.attributes());
    let Some(req) = refused(dump.request(Path::new(STORES))) else { return };
    drop(req.datastore.dir());
    if let Some(image) = &req.image {
        drop(refused(image.digests()));
        drop(refused(image_path(image.path.as_deref().unwrap_or_default())));
        let source = image.source.as_deref().unwrap_or_default();
        if let Some(name) = refused(source_name(&req.datastore.base_path, source)) {
            assert!(!name.as_str().contains('/') && !name.as_str().starts_with(['.', '-']), "{name}");
        }
    }
}

/// What the program is called as, one word a line; what follows an empty line is stdin.
fn argv(data: &[u8]) {
    let (words, stdin) = words(data);
    if let Some(call) = Invocation::of(&words) {
        assert!(!call.driver.is_empty() && !call.driver.contains('/'), "{call}");
        let again = Invocation::named(Path::new(&call.to_string())).expect("it names a verb");
        assert_eq!(again.to_string(), call.to_string());
        drop(refused(DsCall::from(&call.args, stdin)));
    }
}

/// Lines up to an empty one, and what is behind that.
fn words(data: &[u8]) -> (Vec<OsString>, &[u8]) {
    let end = data.windows(2).position(|w| w == b"\n\n").unwrap_or(data.len());
    let words = data[..end].split(|b| *b == b'\n').map(|l| OsString::from_vec(l.to_vec())).collect();
    (words, data.get(end + 2..).unwrap_or_default())
}

/// The other documents of oned.
fn documents(data: &[u8]) {
    if let Some(vm) = refused(Vm::parse(data)) {
        for id in 0..4 {
            let _ = refused(vm.need_disk(id));
            let _ = vm.snapshots_of(id);
        }
    }
    drop(refused(HostDoc::parse_pool(data)));
    drop(refused(ImageDoc::parse(data)));
    drop(refused(Datastores::parse(data, Path::new(STORES))));
}

/// The arguments of a transfer-manager verb, one a line, the verb first; what follows an empty line is stdin.
fn tm_call(data: &[u8]) {
    let (mut args, stdin) = words(data);
    let verb = args.remove(0).to_string_lossy().into_owned();
    if let Some(call) = refused(TmCall::from(&verb, &args, stdin)) {
        let _ = call.object();
    }
}

fn host_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(place) = HostPath::parse(text) else { return };
    plain(&place.path);
    if let Some(host) = &place.host {
        assert!(!host.as_str().starts_with('-') && !host.as_str().contains(char::is_whitespace), "{host:?}");
    }
    assert_eq!(place.is_disk(), place.disk_id().is_some());
    if let Ok(at) = VmPath::of(place.clone()) {
        assert_eq!(at.path(), place.path);
        plain(&at.path());
    }
}

/// The head of an image, of a file of just that length and of a larger one.
fn image(data: &[u8]) {
    let len = data.len() as u64;
    for len in [None, Some(len), Some(len + (1 << 30))] {
        let Ok(found) = probe_bytes(data, len) else { continue };
        let refused = admit(&found, &Admit::default());
        if found.backing.is_some() || found.data_file.is_some() || !found.extents.is_empty() {
            assert!(refused.is_err(), "taken although it reads other files: {found:?}");
        }
    }
}

/// A stream from another host, in pieces. What is understood is said again in the same way.
fn frames(data: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in data.chunks(7) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.frame() {
            let again = frame.encode().expect("it came over the wire");
            if matches!(&frame, Frame::Binary(b) if again[5..] != b[..]) {
                panic!("{frame:?} becomes {again:?}");
            }
        }
    }
    let _ = decoder.end();
}

/// The managers' records, as found and with a checksum that fits. What is read is written again alike.
fn records(data: &[u8]) {
    let json = data.split(|b| *b == b'\n').next().unwrap_or_default();
    let sum: String = Sha256::digest(json).iter().map(|b| format!("{b:02x}")).collect();
    let summed = [json, b"\n", sum.as_bytes(), b"\n"].concat();
    for bytes in [data, &summed] {
        if let Ok(commit) = decode::<Commit>("commit", bytes) {
            for step in &commit.steps {
                let name = Path::new(step.target().as_str());
                assert!(
                    name.components().all(|c| matches!(c, Component::Normal(n) if n != ".sdm")),
                    "{}",
                    name.display()
                );
            }
            let again = encode("commit", &commit).expect("it was read");
            assert_eq!(decode::<Commit>("commit", &again).expect("it was written"), commit);
        }
        drop(decode::<Intent>("intent", bytes));
        drop(decode::<Header>("header", bytes));
    }
}

fn xmlrpc(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = refused(read_answer(text));
    }
}

/// Stock's helper files: every line is understood or reported.
fn rc(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    let read = parse_rc(&text);
    assert!(read.skipped.iter().all(|n| (1..=lines).contains(n)));
    for (name, (line, value)) in &read.values {
        assert!((1..=lines).contains(line) && !read.skipped.contains(line));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{name}");
        assert!(!value.contains(['`', '\n']) || text.contains('\''), "{value}");
    }
}
