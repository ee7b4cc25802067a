//! Queues of large blocks between the threads of a transfer. The end is a word of its own: a sender
//! that vanishes without it has failed, so a short stream is never taken for a whole one.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes per block.
pub(super) const BLOCK: usize = 512 << 10;
/// Blocks that wait in one queue.
const DEPTH: usize = 8;

pub(super) enum Item {
    Data(Arc<Vec<u8>>),
    End,
}

pub(super) fn queue() -> (SyncSender<Item>, Receiver<Item>) {
    sync_channel(DEPTH)
}

/// The receiving end as a stream without copying.
pub(super) struct Feed {
    queue: Receiver<Item>,
    block: Arc<Vec<u8>>,
    at: usize,
    ended: bool,
}

impl Feed {
    pub(super) fn new(queue: Receiver<Item>) -> Feed {
        Feed { queue, block: Arc::default(), at: 0, ended: false }
    }

    /// The next whole block; `None` at the end. Not after `read`.
    pub(super) fn next_block(&mut self) -> io::Result<Option<Arc<Vec<u8>>>> {
        if self.at == self.block.len() && self.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.at = self.block.len();
        Ok(Some(Arc::clone(&self.block)))
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.block.len() && !self.ended {
            match self.queue.recv() {
                Ok(Item::Data(block)) => (self.block, self.at) = (block, 0),
                Ok(Item::End) => self.ended = true,
                Err(_) => return Err(io::Error::other("the stage before it failed")),
            }
        }
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = self.block.len().min(self.at + n);
    }
}

impl Read for Feed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_is_an_end() {
        let (send, receive) = queue();
        send.send(Item::Data(Arc::new(b"abc".to_vec()))).unwrap();
        send.send(Item::Data(Arc::default())).unwrap();
        send.send(Item::Data(Arc::new(b"de".to_vec()))).unwrap();
        send.send(Item::End).unwrap();
        let mut text = String::new();
        let mut feed = Feed::new(receive);
        feed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcde");
        assert!(feed.next_block().unwrap().is_none());

        let (send, receive) = queue();
        send.send(Item::Data(Arc::new(b"abc".to_vec()))).unwrap();
        drop(send);
        assert!(Feed::new(receive).read_to_string(&mut text).is_err());
    }
}
