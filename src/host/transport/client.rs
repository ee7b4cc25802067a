//! The front-end's side of a connection to an agent.

use super::{Channel, Commit, Duplex, Ended, Event, Next, Pipe, Request, Settings};
use crate::host::error::{HostError, Stage};
use crate::host::wire::{Control, Decoder, Frame, Hello, Outcome, PROTOCOL, WireError};
use crate::sys::Cancel;
use serde_json::Value;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long cancel and deadlines may go unseen.
const SLICE: Duration = Duration::from_millis(20);
/// Data on their way out; more is not asked of the source.
const AHEAD: usize = 4 << 20;
/// How long a program that has closed its output may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// An agent that has said hello.
pub struct Client {
    host: String,
    line: Duplex,
    decoder: Decoder,
    hello: Hello,
    last: u64,
    /// When something last came, and when we last asked for a sign of life.
    heard: Instant,
    asked: Instant,
    silence: Duration,
    cancel_grace: Duration,
}

/// Why there is no client.
pub enum NoHello {
    /// It ended without a word of the protocol.
    Ended(Ended),
    Other(HostError),
}

impl Client {
    /// Exchanges hellos over a fresh pipe.
    pub fn greet(
        host: &str,
        pipe: Box<dyn Pipe>,
        settings: &Settings,
        cancel: &Cancel,
    ) -> Result<Client, NoHello> {
        let now = Instant::now();
        let mut client = Client {
            host: host.to_owned(),
            line: Duplex::new(pipe),
            decoder: Decoder::default(),
            hello: Hello::default(),
            last: 0,
            heard: now,
            asked: now,
            silence: settings.silence,
            cancel_grace: settings.cancel_grace,
        };
        client.post(&Control::Hello(Hello::ours()), Stage::Connect).map_err(NoHello::Other)?;
        let lost = |said| HostError::Lost { host: host.to_owned(), stage: Stage::Connect, said };
        loop {
            match client.next(Stage::Connect) {
                Ok(Some(Frame::Control(Control::Hello(hello)))) => {
                    if hello.protocol != PROTOCOL {
                        let (version, theirs) = (hello.version, hello.protocol);
                        let host = host.to_owned();
                        return Err(NoHello::Other(HostError::Protocol { host, version, theirs }));
                    }
                    client.hello = hello;
                    return Ok(client);
                }
                Ok(Some(_)) => return Err(NoHello::Other(lost(String::new()))),
                Ok(None) => {}
                Err(e @ HostError::Lost { .. }) => {
                    let ended = client.line.end(LAST_WORDS);
                    return Err(if ended == Ended::default() {
                        NoHello::Other(e)
                    } else {
                        NoHello::Ended(ended)
                    });
                }
                Err(e) => return Err(NoHello::Other(e)),
            }
            if cancel.is_requested() {
                let stage = Stage::Connect;
                return Err(NoHello::Other(HostError::Cancelled { host: host.to_owned(), stage }));
            }
            // The system's ssh still has to connect.
            let after = settings.connect + settings.silence;
            if now.elapsed() > after {
                let (host, stage) = (host.to_owned(), Stage::Connect);
                return Err(NoHello::Other(HostError::Silent { host, after, stage }));
            }
            client.line.turn(SLICE, None);
        }
    }

    pub fn version(&self) -> &str {
        &self.hello.version
    }

    fn silent(&self, stage: Stage) -> HostError {
        HostError::Silent { host: self.host.clone(), after: self.silence, stage }
    }

    fn wire(&self, source: WireError, stage: Stage) -> HostError {
        HostError::Wire { host: self.host.clone(), source, stage }
    }

    fn post(&mut self, c: &Control, stage: Stage) -> Result<(), HostError> {
        let bytes = Frame::Control(c.clone()).encode().map_err(|e| self.wire(e, stage))?;
        self.line.post(bytes);
        Ok(())
    }

    /// The next frame that is already here.
    fn next(&mut self, stage: Stage) -> Result<Option<Frame>, HostError> {
        if !self.line.inbox.is_empty() {
            self.heard = Instant::now();
            self.decoder.push(&self.line.inbox);
            self.line.inbox.clear();
        }
        match self.decoder.frame() {
            Ok(None) if self.line.ended => match self.decoder.end() {
                Ok(()) | Err(WireError::Cut) => {
                    let said =
                        if stage == Stage::Connect { String::new() } else { self.line.end(LAST_WORDS).said };
                    Err(HostError::Lost { host: self.host.clone(), stage, said })
                }
                Err(e) => Err(self.wire(e, stage)),
            },
            Ok(frame) => Ok(frame),
            Err(e) => Err(self.wire(e, stage)),
        }
    }

    /// Gives up a connection that has been silent for too long, and asks for a sign of life before that.
    fn is_alive(&mut self, stage: Stage) -> Result<(), HostError> {
        if self.heard.elapsed() > self.silence {
            self.line.ended = true;
            return Err(self.silent(stage));
        }
        // Also when we hear it all the time: a host that only sends must not think us lost.
        if self.asked.elapsed() > self.silence / 3 {
            self.asked = Instant::now();
            self.post(&Control::Ping, stage)?;
        }
        Ok(())
    }
}

/// One request in the air.
struct Call<'a> {
    id: u64,
    commit: Commit<'a>,
    stage: Stage,
    cancelled: Option<Instant>,
}

impl Channel for Client {
    fn peer(&self) -> &Hello {
        &self.hello
    }

    fn call(
        &mut self,
        request: Request<'_>,
        on_event: &mut (dyn FnMut(Event) + Send),
        cancel: &Cancel,
    ) -> Result<Value, HostError> {
        if cancel.is_requested() {
            return Err(HostError::Cancelled { host: self.host.clone(), stage: Stage::Connect });
        }
        self.last += 1;
        // The time between two requests is not the host's.
        self.heard = Instant::now();
        let (id, now) = (self.last, matches!(request.commit, Commit::Now));
        let frame = Control::Request { id, job: request.job.to_owned(), body: request.body, commit: now };
        self.post(&frame, Stage::Connect)?;
        let stage = if now { Stage::Committed } else { Stage::Asked };
        let mut call = Call { id, commit: request.commit, stage, cancelled: None };
        let mut source = request.source;
        let bell = source.as_ref().and_then(|s| s.bell());
        loop {
            let frame = self.next(call.stage)?;
            let mut wait = if frame.is_some() { Duration::ZERO } else { SLICE };
            if let Some(frame) = frame {
                if let Some(outcome) = self.take(frame, &mut call, on_event, cancel)? {
                    let host = self.host.clone();
                    return match outcome {
                        Outcome::Ok(answer) => Ok(answer),
                        Outcome::Failed { class, text } => Err(HostError::Failed { host, class, text }),
                    };
                }
                // The time that somebody took over it was not the host's.
                self.heard = Instant::now();
            }
            if cancel.is_requested() && call.cancelled.is_none() {
                call.cancelled = Some(Instant::now());
                self.post(&Control::Cancel { id }, call.stage)?;
            }
            if call.cancelled.is_some_and(|t| t.elapsed() > self.cancel_grace) {
                self.line.ended = true;
                return Err(HostError::Cancelled { host: self.host.clone(), stage: call.stage });
            }
            self.is_alive(call.stage)?;
            let mut listen = None;
            if self.line.pending() < AHEAD
                && let Some(from) = &mut source
            {
                let next = from.next();
                if matches!(next, Next::End) {
                    source = None;
                }
                let block = match next {
                    Next::Block(block) => Some(block),
                    Next::End => Some(Vec::new()),
                    Next::Later => None,
                };
                if let Some(block) = block {
                    let head = Frame::head_of(&block).map_err(|e| self.wire(e, call.stage))?;
                    self.line.post(head.to_vec());
                    self.line.post(block);
                    wait = Duration::ZERO;
                } else {
                    listen = bell.as_ref().map(AsFd::as_fd);
                }
            }
            self.line.turn(wait, listen);
        }
    }
}

impl Client {
    /// What a frame means; the outcome when it is the last.
    fn take(
        &mut self,
        frame: Frame,
        call: &mut Call<'_>,
        on_event: &mut (dyn FnMut(Event) + Send),
        cancel: &Cancel,
    ) -> Result<Option<Outcome>, HostError> {
        let turn = WireError::Turn(frame.name());
        match frame {
            Frame::Binary(data) => on_event(Event::Data(data)),
            Frame::Control(Control::Progress { progress, .. }) => on_event(Event::Progress(progress)),
            Frame::Control(Control::Log { warn, text, .. }) => on_event(Event::Log { warn, text }),
            Frame::Control(Control::Ping) => {}
            Frame::Control(Control::Reply { id, outcome }) if id == call.id => return Ok(Some(outcome)),
            Frame::Control(Control::Ready { id }) if id == call.id && call.stage == Stage::Asked => {
                let Commit::When(ask) = &mut call.commit else { return Err(self.wire(turn, call.stage)) };
                let yes = !cancel.is_requested() && ask();
                // Whatever the question took, the host was not asked for a sign of life meanwhile.
                self.heard = Instant::now();
                if yes {
                    call.stage = Stage::Committed;
                    self.post(&Control::Commit { id }, call.stage)?;
                } else {
                    self.post(&Control::Abandon { id }, call.stage)?;
                }
            }
            Frame::Control(_) => return Err(self.wire(turn, call.stage)),
        }
        Ok(None)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Between requests the agent may go; in the middle of one it is to see a lost connection.
        if !self.line.ended && self.post(&Control::Bye, Stage::Connect).is_ok() {
            self.line.turn(Duration::ZERO, None);
        }
    }
}
