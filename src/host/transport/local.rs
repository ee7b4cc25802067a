//! The handler in this process: this machine needs no connection.

use super::{Bell, Channel, Commit, Event, Next, Request, Source};
use crate::host::error::{HostError, Stage};
use crate::host::link::{Gone, Handler, Link};
use crate::host::wire::{Hello, Progress};
use crate::sys::Cancel;
use serde_json::Value;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a request to stop may go unseen.
const SLICE: Duration = Duration::from_millis(20);

/// A channel to this process.
pub struct Local<'a> {
    handler: &'a dyn Handler,
    hello: Hello,
}

impl<'a> Local<'a> {
    pub fn new(handler: &'a dyn Handler) -> Local<'a> {
        Local { handler, hello: Hello::ours() }
    }
}

impl Channel for Local<'_> {
    fn peer(&self) -> &Hello {
        &self.hello
    }

    fn call(
        &mut self,
        request: Request<'_>,
        on_event: &mut (dyn FnMut(Event) + Send),
        cancel: &Cancel,
    ) -> Result<Value, HostError> {
        let host = || "localhost".to_owned();
        if cancel.is_requested() {
            return Err(HostError::Cancelled { host: host(), stage: Stage::Connect });
        }
        let word = match request.commit {
            Commit::Now => Word::Given(true),
            Commit::When(ask) => Word::Ask(ask),
        };
        let bell = request.source.as_ref().and_then(|s| s.bell());
        let inner = Mutex::new(Inner { word, on_event, source: request.source });
        let link = Here { inner, bell, cancel };
        let answer = self.handler.handle(request.job, request.body, &link);
        answer.map_err(|(class, text)| HostError::Failed { host: host(), class, text })
    }
}

enum Word<'a> {
    Ask(&'a mut (dyn FnMut() -> bool + Send)),
    Given(bool),
}

struct Inner<'a, 'b> {
    word: Word<'a>,
    on_event: &'b mut (dyn FnMut(Event) + Send),
    source: Option<&'a mut dyn Source>,
}

struct Here<'a, 'b> {
    inner: Mutex<Inner<'a, 'b>>,
    bell: Option<Bell>,
    cancel: &'b Cancel,
}

impl<'a, 'b> Here<'a, 'b> {
    fn with<T>(&self, f: impl FnOnce(&mut Inner<'a, 'b>) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Link for Here<'_, '_> {
    fn cancel(&self) -> &Cancel {
        self.cancel
    }

    fn progress(&self, progress: Progress) {
        self.with(|i| (i.on_event)(Event::Progress(progress)));
    }

    fn log(&self, warn: bool, text: &str) {
        self.with(|i| (i.on_event)(Event::Log { warn, text: text.to_owned() }));
    }

    fn ready(&self) -> bool {
        self.with(|i| {
            let yes = match &mut i.word {
                Word::Given(yes) => *yes && !self.cancel.is_requested(),
                Word::Ask(ask) => !self.cancel.is_requested() && ask(),
            };
            i.word = Word::Given(yes);
            yes
        })
    }

    fn send(&self, data: Vec<u8>) -> Result<(), Gone> {
        if self.cancel.is_requested() {
            return Err(Gone);
        }
        self.with(|i| (i.on_event)(Event::Data(data)));
        Ok(())
    }

    fn receive(&self) -> Result<Option<Vec<u8>>, Gone> {
        loop {
            if self.cancel.is_requested() {
                return Err(Gone);
            }
            match self.with(|i| i.source.as_mut().map_or(Next::End, |s| s.next())) {
                Next::Block(block) => return Ok(Some(block)),
                Next::End => return Ok(None),
                Next::Later => match &self.bell {
                    Some(bell) => bell.wait(SLICE),
                    None => drop(self.cancel.wait(SLICE)),
                },
            }
        }
    }
}
