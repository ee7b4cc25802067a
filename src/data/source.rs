//! Where bytes come from, read front to back.

use std::fs::File;
use std::io::{self, Read};

use super::DataError;
use super::http::{Client, Download};
use crate::sys::copy as calls;

pub enum Source {
    /// A regular file or block device, read from its beginning wherever its position is.
    File(File),
    /// An http or https URL.
    Http(String),
}

impl Source {
    /// The bytes of the source as they lie there; the request is made here.
    pub(super) fn open<'a>(&'a self, client: &'a Client) -> Result<Stream<'a>, DataError> {
        match self {
            Source::File(file) => {
                let (_, len) = calls::measure(file).map_err(DataError::io("looking at the source"))?;
                calls::will_read_once(file);
                Ok(Stream::File { file, pos: 0, len })
            }
            Source::Http(url) => Ok(Stream::Http(Box::new(client.download(url)?))),
        }
    }
}

pub(super) enum Stream<'a> {
    File { file: &'a File, pos: u64, len: u64 },
    Http(Box<Download<'a>>),
}

impl Stream<'_> {
    /// Bytes in all, when known before.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Stream::File { len, .. } => Some(*len),
            Stream::Http(download) => download.len(),
        }
    }

    /// As `Read::read`; 0 means that everything is here.
    pub(super) fn next(&mut self, buf: &mut [u8]) -> Result<usize, DataError> {
        match self {
            Stream::Http(download) => download.read(buf),
            Stream::File { file, pos, len } => {
                let n = calls::read_full(file, buf, *pos).map_err(DataError::io("reading"))?;
                *pos += n as u64;
                if *pos > *len || (n < buf.len() && *pos != *len) {
                    return Err(DataError::SourceChanged { before: *len, after: *pos });
                }
                Ok(n)
            }
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.next(buf).map_err(io::Error::other)
    }
}
