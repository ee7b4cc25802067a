//! One pass from a file or a server into an image: transfer, verify, decompress, write sparse. Each
//! stage is a thread; all of them have ended when `fetch` returns, whatever happened.

use std::fs::File;
use std::io::BufRead as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::compress::{SNIFF, fill};
use super::http::Client;
use super::measure::head;
use super::pipe::{BLOCK, Feed, Item, queue};
use super::rate::Limiter;
use super::sparse::Writer;
use super::{
    Compression, DataError, Expected, HttpOptions, Method, Planned, Source, Sparse, Watch, copy, path_of,
    shown,
};
use crate::sys::Cancel;
use crate::sys::copy as calls;
use crate::sys::effect::{Effect, bug, only_looks, step};

#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Of the transferred, still compressed bytes; all must match.
    pub digests: Vec<Expected>,
    pub decompress: bool,
    /// Bytes per second of transferred bytes.
    pub limit: Option<u64>,
    /// Bytes of the written image; more is an error.
    pub max_size: u64,
    pub sparse: Sparse,
    pub http: HttpOptions,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions {
            digests: Vec::new(),
            decompress: true,
            limit: None,
            max_size: u64::MAX,
            sparse: Sparse::default(),
            http: HttpOptions::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Size of the image in bytes, holes included.
    pub written: u64,
    /// Bytes that came from the source, compressed as they were.
    pub transferred: u64,
    /// `None` also when decompression was not asked for.
    pub compression: Compression,
    pub method: Method,
}

/// How a stage ended when it did not do its work.
enum Stop {
    /// Its own fault, or the outside's.
    Failed(DataError),
    /// A neighbour went away; that one knows why.
    Neighbour,
}

impl From<DataError> for Stop {
    fn from(e: DataError) -> Stop {
        Stop::Failed(e)
    }
}

/// Fetches all of `source` into `dst`, which is empty and reads zero. On success every digest matched
/// and `dst` holds the whole image, not flushed; after an error it holds a part of unverified content.
/// A server that sends no length and closes the connection early can only be caught by a digest.
pub fn fetch(source: &Source, dst: &File, opts: &FetchOptions, watch: &Watch) -> Result<Fetched, DataError> {
    if only_looks() {
        return planned(source, dst, opts, watch);
    }
    if let Source::File(src) = source
        && opts.digests.is_empty()
        && opts.limit.is_none()
        && let Some(whole) = copied_whole(src, dst, opts, watch)?
    {
        return Ok(whole);
    }
    step(Effect::Write, &[], || run(source, dst, opts, watch))
}

/// What is not packed goes on as it is.
fn planned(source: &Source, dst: &File, opts: &FetchOptions, watch: &Watch) -> Result<Fetched, DataError> {
    if let Source::File(src) = source
        && let Some(whole) = copied_whole(src, dst, opts, watch)?
    {
        return Ok(whole);
    }
    let head = head(source, SNIFF, opts, watch)?;
    let from = match source {
        Source::Http(url) => shown(url),
        Source::File(file) => path_of(file),
    };
    let device = None;
    let how = format!("fetch{}", if head.compression == Compression::None { "" } else { " and unpack" });
    watch.progress.plan(Planned { from, size: head.transferred_len, data: None, how, device });
    Err(DataError::Planned)
}

/// Whether a file is compressed, as its first bytes say.
pub fn is_packed(src: &File) -> Result<bool, DataError> {
    let mut head = [0; SNIFF];
    let n = calls::read_full(src, &mut head, 0).map_err(DataError::io("reading"))?;
    Ok(Compression::sniff(&head[..n]) != Compression::None)
}

/// The digests of a file that came by another way.
pub fn verify(file: &File, digests: &[Expected], watch: &Watch) -> Result<(), DataError> {
    let mut hashers: Vec<_> = digests.iter().map(|d| (d, d.algo().hasher())).collect();
    let (mut block, mut at) = (vec![0; BLOCK], 0);
    while !hashers.is_empty() {
        watch.check("verifying")?;
        let n = calls::read_full(file, &mut block, at).map_err(DataError::io("reading"))?;
        for (_, hasher) in &mut hashers {
            hasher.update(&block[..n]);
        }
        at += n as u64;
        if n < BLOCK {
            break;
        }
    }
    for (expected, mut hasher) in hashers {
        let mut digest = vec![0; hasher.output_size()];
        hasher.finalize_into_reset(&mut digest).map_err(|_| DataError::Died)?;
        expected.verify(&digest)?;
    }
    Ok(())
}

/// A file that is taken as it is needs no pipeline.
fn copied_whole(
    src: &File,
    dst: &File,
    opts: &FetchOptions,
    watch: &Watch,
) -> Result<Option<Fetched>, DataError> {
    let (_, size) = calls::measure(src).map_err(DataError::io("looking at the source"))?;
    if opts.decompress && is_packed(src)? {
        return Ok(None);
    }
    if size > opts.max_size {
        return Err(DataError::TooLarge { limit: opts.max_size });
    }
    let copied = copy(src, dst, opts.sparse, watch)?;
    Ok(Some(Fetched {
        written: copied.size,
        transferred: copied.size,
        compression: Compression::None,
        method: copied.method,
    }))
}

/// What the threads of one transfer share.
struct Shared<'a> {
    opts: &'a FetchOptions,
    watch: &'a Watch,
    /// Set when one stage failed: the others end.
    stop: Cancel,
    client: Client,
    /// Bytes to transfer, set before the first block when known.
    expected: OnceLock<u64>,
}

impl Shared<'_> {
    fn abort(&self) {
        self.stop.request();
        self.client.abort();
    }
}

fn run(source: &Source, dst: &File, opts: &FetchOptions, watch: &Watch) -> Result<Fetched, DataError> {
    watch.may_move()?;
    watch.begin("fetching", None)?;
    let stop = Cancel::default();
    let client = Client::new(&opts.http, stop.clone())?;
    let shared = Shared { opts, watch, stop, client, expected: OnceLock::new() };
    let mut writer = Writer::new(dst, opts.sparse, opts.max_size)?;

    thread::scope(|scope| {
        let shared = &shared;
        let (to_decoder, from_source) = queue();
        let (to_writer, from_decoder) = queue();
        let mut sinks = vec![to_decoder];
        let mut hashers = Vec::new();
        for expected in &opts.digests {
            let (to_hasher, blocks) = queue();
            sinks.push(to_hasher);
            hashers.push(scope.spawn(move || hash(expected, blocks)));
        }
        let transfer = scope.spawn(move || transfer(source, shared, &sinks));
        let decode = scope.spawn(move || decode(from_source, &to_writer, shared));
        let written = write(&from_decoder, &mut writer, watch);
        // Whoever still works works for nothing, and the one before the writer may wait for it.
        drop(from_decoder);
        if written.is_err() {
            shared.abort();
        }
        let transferred = joined(transfer);
        let compression = joined(decode);
        let digests: Vec<_> = hashers.into_iter().map(joined).collect();

        watch.check("fetching")?;
        // From the source on: a failure there is the cause of what follows.
        let transferred = transferred.map_or_else(first_cause, |n| Ok(Some(n)))?;
        let compression = compression.map_or_else(first_cause, |c| Ok(Some(c)))?;
        written.map_or_else(first_cause, |()| Ok(Some(())))?;
        for digest in digests {
            digest.map_or_else(first_cause, |()| Ok(Some(())))?;
        }
        let (Some(transferred), Some(compression)) = (transferred, compression) else {
            return Err(DataError::Died);
        };
        let (written, _) = writer.finish()?;
        Ok(Fetched { written, transferred, compression, method: Method::Sparse })
    })
}

fn joined<T>(stage: ScopedJoinHandle<'_, Result<T, Stop>>) -> Result<T, Stop> {
    stage.join().unwrap_or(Err(Stop::Failed(DataError::Died)))
}

fn first_cause<T>(stop: Stop) -> Result<Option<T>, DataError> {
    match stop {
        Stop::Failed(e) => Err(e),
        Stop::Neighbour => Ok(None),
    }
}

/// Reads the source to its end and hands every block to all `sinks`; the bytes transferred.
fn transfer(source: &Source, shared: &Shared<'_>, sinks: &[SyncSender<Item>]) -> Result<u64, Stop> {
    // An error after a request to stop is that request's echo.
    let failed = |e| if shared.stop.is_requested() { Stop::Neighbour } else { Stop::Failed(e) };
    let mut stream = source.open(&shared.client).map_err(failed)?;
    if let Some(len) = stream.len() {
        let _ = shared.expected.set(len);
        shared.watch.progress.total(len);
    }
    let mut limiter = shared.opts.limit.map(Limiter::new);
    let size = limiter.as_ref().map_or(BLOCK, |l| l.block().min(BLOCK));
    let mut transferred = 0;
    loop {
        let mut block = vec![0; size];
        let mut n = 0;
        let mut ended = false;
        while n < size && !ended {
            let k = stream.next(&mut block[n..]).map_err(failed)?;
            ended = k == 0;
            n += k;
            shared.watch.progress.add(k as u64);
            if shared.stop.is_requested() {
                return Err(Stop::Neighbour);
            }
        }
        block.truncate(n);
        transferred += n as u64;
        let block = Arc::new(block);
        for sink in sinks {
            sink.send(Item::Data(Arc::clone(&block))).map_err(|_| Stop::Neighbour)?;
        }
        if ended {
            break;
        }
        if limiter.as_mut().is_some_and(|l| !l.moved(n, &shared.stop)) {
            return Err(Stop::Neighbour);
        }
    }
    for sink in sinks {
        sink.send(Item::End).map_err(|_| Stop::Neighbour)?;
    }
    Ok(transferred)
}

fn hash(expected: &Expected, blocks: Receiver<Item>) -> Result<(), Stop> {
    let mut hasher = expected.algo().hasher();
    let mut feed = Feed::new(blocks);
    while let Some(block) = feed.next_block().map_err(|_| Stop::Neighbour)? {
        hasher.update(&block);
    }
    let mut digest = vec![0; hasher.output_size()];
    hasher.finalize_into_reset(&mut digest).map_err(|_| Stop::Failed(DataError::Died))?;
    if bug("accept-digest") { Ok(()) } else { Ok(expected.verify(&digest)?) }
}

fn decode(blocks: Receiver<Item>, out: &SyncSender<Item>, shared: &Shared<'_>) -> Result<Compression, Stop> {
    let mut feed = Feed::new(blocks);
    let send = |item| out.send(item).map_err(|_| Stop::Neighbour);
    let compression = if shared.opts.decompress {
        let head = feed.fill_buf().map_err(|_| Stop::Neighbour)?;
        Compression::sniff(head)
    } else {
        Compression::None
    };
    if compression == Compression::None {
        // What does not fit need not be transferred.
        if shared.expected.get().is_some_and(|len| *len > shared.opts.max_size) {
            return Err(Stop::Failed(DataError::TooLarge { limit: shared.opts.max_size }));
        }
        while let Some(block) = feed.next_block().map_err(|_| Stop::Neighbour)? {
            send(Item::Data(block))?;
        }
    } else {
        let corrupt = |e: std::io::Error| {
            if shared.stop.is_requested() {
                Stop::Neighbour
            } else {
                Stop::Failed(DataError::Corrupt { compression, why: e.to_string() })
            }
        };
        let mut decoder = compression.decoder(feed).map_err(corrupt)?;
        loop {
            let mut block = vec![0; BLOCK];
            let n = fill(&mut *decoder, &mut block).map_err(corrupt)?;
            if n == 0 {
                break;
            }
            block.truncate(n);
            send(Item::Data(Arc::new(block)))?;
        }
    }
    send(Item::End)?;
    Ok(compression)
}

/// Runs in the caller's thread, which is the one that looks for a request to stop.
fn write(blocks: &Receiver<Item>, writer: &mut Writer<'_>, watch: &Watch) -> Result<(), Stop> {
    loop {
        watch.check("fetching")?;
        match blocks.recv_timeout(Duration::from_millis(50)) {
            Ok(Item::Data(block)) => writer.push(&block)?,
            Ok(Item::End) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Stop::Neighbour),
        }
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
