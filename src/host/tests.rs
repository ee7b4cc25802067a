//! Client and agent against each other, over a socket pair in place of ssh.

use super::install::reach;
use super::scripted::Scripted;
use super::transport::{Client, Connection, Ended, NoHello, Pipe};
use super::wire::{Control, Decoder, Frame, Hello, PROTOCOL};
use super::{
    Bell, Channel, Commit, Event, Handler, HostError, Limits, Link, Local, Next, Request, Settings, Source,
    Stage, WireError, serve,
};
use crate::sys::Cancel;
use crate::sys::Class;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{self, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

struct Socket(UnixStream, Ended);

impl Pipe for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn wait(&mut self, writes: bool, bell: Option<BorrowedFd<'_>>, d: Duration) {
        let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let bell = bell.map(|b| PollFd::from_borrowed_fd(b, PollFlags::IN));
        let mut fds: Vec<_> = [PollFd::new(&self.0, flags)].into_iter().chain(bell).collect();
        let _ = poll(&mut fds, Some(&d.try_into().unwrap()));
    }
    fn end(&mut self, _: Duration) -> Ended {
        std::mem::take(&mut self.1)
    }
}

fn limits() -> Limits {
    Limits { silence: Duration::from_secs(5), orphan_grace: Duration::from_millis(300) }
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings { silence: second, connect: second, cancel_grace: second, ..Settings::default() }
}

type Served = JoinHandle<Result<(), WireError>>;

/// An agent in a thread, and our end of the wire to it.
fn agent(cancel: &Cancel) -> (UnixStream, Served) {
    agent_with(cancel, limits())
}

fn agent_with(cancel: &Cancel, limits: Limits) -> (UnixStream, Served) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (cancel, output) = (cancel.clone(), theirs.try_clone().unwrap());
    (ours, std::thread::spawn(move || serve(theirs, output, &Scripted, limits, &cancel)))
}

fn client_of(ours: &UnixStream) -> Result<Client, HostError> {
    let ours = ours.try_clone().unwrap();
    ours.set_nonblocking(true).unwrap();
    match Client::greet("h", Box::new(Socket(ours, Ended::default())), &settings(), &Cancel::default()) {
        Ok(c) => Ok(c),
        Err(NoHello::Other(e)) => Err(e),
        Err(NoHello::Ended(e)) => panic!("{e:?}"),
    }
}

fn connected() -> (Client, UnixStream, Served) {
    let (ours, served) = agent(&Cancel::default());
    (client_of(&ours).unwrap(), ours, served)
}

fn ask(c: &mut dyn Channel, body: Value, commit: Commit<'_>) -> Result<Value, HostError> {
    let request = Request { job: "j1", body, commit, source: None };
    c.call(request, &mut |_| {}, &Cancel::default())
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn requests_are_answered_one_after_the_other() {
    let (mut c, _ours, served) = connected();
    assert_eq!(c.peer(), &Hello::ours());
    for channel in [&mut c as &mut dyn Channel, &mut Local::new(&Scripted)] {
        for n in 0..3 {
            assert_eq!(ask(channel, json!([{"answer": [n]}]), Commit::Now).unwrap(), json!([n]));
            let e = ask(channel, json!([{"fail": "no such thing"}]), Commit::Now).unwrap_err();
            assert_eq!((e.class(), e.may_have_run()), (Class::NotFound, false));
            assert!(e.to_string().ends_with("no such thing"));
        }
    }
    drop(c);
    served.join().unwrap().unwrap();
}

#[test]
fn a_host_that_only_sends_hears_that_we_live() {
    let limits = Limits { silence: Duration::from_millis(700), ..limits() };
    let (ours, _served) = agent_with(&Cancel::default(), limits);
    let mut c = client_of(&ours).unwrap();
    let steps: Vec<Value> = (0..100).map(|_| json!({"send": 1, "sleep": 15})).collect();
    ask(&mut c, Value::Array(steps), Commit::Now).unwrap();
}

#[test]
fn events_and_data_go_both_ways_without_waiting_for_each_other() {
    let (mut c, _ours, _served) = connected();
    for channel in [&mut c as &mut dyn Channel, &mut Local::new(&Scripted)] {
        let (mut left, mut got, mut seen) = (21, 0, 0);
        let mut source = || {
            left -= 1;
            match left {
                ..0 => Next::End,
                10 => Next::Later,
                _ => Next::Block(vec![1; 1 << 20]),
            }
        };
        let mut steps = vec![json!({"progress": 5})];
        steps.extend((0..20).map(|_| json!({"send": 1 << 20})));
        steps.push(json!({"receive": 0}));
        let body = Value::Array(steps);
        let request = Request { job: "j", body, commit: Commit::Now, source: Some(&mut source) };
        let mut on_event = |e: Event| match e {
            Event::Data(d) => got += d.len(),
            Event::Progress(p) => seen += p.done,
            Event::Log { warn, text } => assert_eq!((warn, text.as_str()), (true, "a line")),
        };
        let answer = channel.call(request, &mut on_event, &Cancel::default()).unwrap();
        assert_eq!((answer, got, seen), (json!(20 << 20), 20 << 20, 5));
    }
}

/// Gives what another thread puts into it.
struct Fed(mpsc::Receiver<Vec<u8>>, Bell);

impl Source for Fed {
    fn next(&mut self) -> Next {
        self.1.hush();
        match self.0.try_recv() {
            Ok(block) => Next::Block(block),
            Err(TryRecvError::Empty) => Next::Later,
            Err(TryRecvError::Disconnected) => Next::End,
        }
    }
    fn bell(&self) -> Option<Bell> {
        Some(self.1.clone())
    }
}

/// Sends back what comes.
struct Echo;

impl Handler for Echo {
    fn handle(&self, _: &str, _: Value, link: &dyn Link) -> Result<Value, (Class, String)> {
        while let Ok(Some(block)) = link.receive() {
            link.send(block).unwrap();
        }
        Ok(Value::Null)
    }
}

/// Two that take turns, as sender and receiver of a transfer do before the first byte goes: nobody looks now
/// and then whether the other has something for him, or a hundred turns would take two seconds.
#[test]
fn what_another_thread_has_goes_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = theirs.try_clone().unwrap();
    std::thread::spawn(move || serve(theirs, output, &Echo, limits(), &Cancel::default()));
    let mut client = client_of(&ours).unwrap();
    for channel in [&mut client as &mut dyn Channel, &mut Local::new(&Echo)] {
        let (bell, (feed, fed), (came, comes)) = (Bell::new().unwrap(), mpsc::channel(), mpsc::channel());
        let mut source = Fed(fed, bell.clone());
        let other = std::thread::spawn(move || {
            for _ in 0..100 {
                // Until the channel waits.
                Cancel::default().wait(Duration::from_millis(1));
                feed.send(vec![1]).unwrap();
                bell.ring();
                comes.recv().unwrap();
            }
            drop(feed);
            bell.ring();
        });
        let begin = Instant::now();
        let request = Request { job: "j", body: json!([]), commit: Commit::Now, source: Some(&mut source) };
        let mut on_event = |e| {
            if let Event::Data(_) = e {
                came.send(()).unwrap();
            }
        };
        channel.call(request, &mut on_event, &Cancel::default()).unwrap();
        other.join().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }
}

#[test]
fn an_answer_that_is_too_large_is_an_error_and_not_the_end() {
    let (mut c, ..) = connected();
    let e = ask(&mut c, json!([{"answer": "x".repeat(1 << 20)}]), Commit::Now).unwrap_err();
    assert!(matches!(e, HostError::Wire { stage: Stage::Connect, .. }), "a request that is too large: {e}");
    let e = ask(&mut c, json!([{"long": 1 << 20}]), Commit::Now).unwrap_err();
    assert!(e.class() == Class::Internal && e.to_string().contains("too large"), "{e}");
    assert_eq!(ask(&mut c, json!([]), Commit::Now).unwrap(), Value::Null);
}

#[test]
fn nothing_is_published_before_the_word() {
    let dir = tempfile::tempdir().unwrap();
    let (mut c, ..) = connected();
    for channel in [&mut c as &mut dyn Channel, &mut Local::new(&Scripted)] {
        for yes in [true, false] {
            let file = dir.path().join("word");
            let _ = rustix::fs::unlink(&file);
            let mut asked = 0;
            let mut word = || {
                assert_eq!(text(&file), "", "published before we said so");
                asked += 1;
                yes
            };
            let answer = ask(channel, json!([{"ready": file}]), Commit::When(&mut word));
            assert_eq!(asked, 1);
            assert_eq!(text(&file), format!("{yes}\n"));
            assert_eq!(
                answer.map_err(|e| e.class()),
                if yes { Ok(Value::Null) } else { Err(Class::Cancelled) }
            );
        }
    }
}

/// The three moments at which a connection can be lost, and what the host does about it.
#[test]
fn a_lost_connection_is_not_a_commit_and_no_stop() {
    let dir = tempfile::tempdir().unwrap();
    // Before `ready`: the job goes on to its end and undoes itself.
    let (mut c, ours, served) = connected();
    let [fill, word] = ["fill", "word"].map(|n| dir.path().join(n));
    let body = json!([{"note": fill}, {"sleep": 200}, {"note": fill}, {"ready": word}]);
    let cutter = std::thread::spawn({
        let (fill, ours) = (fill.clone(), ours.try_clone().unwrap());
        move || {
            eventually("the job begins", || !text(&fill).is_empty());
            ours.shutdown(Shutdown::Both).unwrap();
        }
    });
    let e = ask(&mut c, body.clone(), Commit::When(&mut || panic!("never ready"))).unwrap_err();
    assert!(matches!(e, HostError::Lost { stage: Stage::Asked, .. }) && !e.may_have_run(), "{e}");
    let again = ask(&mut c, json!([]), Commit::Now).unwrap_err();
    assert!(matches!(again, HostError::Lost { .. }), "{again}");
    cutter.join().unwrap();
    served.join().unwrap().unwrap();
    assert_eq!((text(&fill).lines().count(), text(&word).as_str()), (2, "false\n"));

    // Between `ready` and `commit`.
    let (mut c, ours, served) = connected();
    let word = dir.path().join("word2");
    let cut = || {
        ours.shutdown(Shutdown::Both).unwrap();
        true
    };
    let e = ask(&mut c, json!([{"ready": word}]), Commit::When(&mut { cut })).unwrap_err();
    // We said it, so we cannot know; the host did not hear it.
    assert!(e.may_have_run(), "{e}");
    assert_eq!(text(&word), "", "it waits for its grace");
    served.join().unwrap().unwrap();
    assert_eq!(text(&word), "false\n");

    // After `commit`: done, the answer is lost.
    let (mut c, ours, served) = connected();
    let word = dir.path().join("word3");
    let late = word.clone();
    let cutter = std::thread::spawn(move || {
        eventually("it is published", || text(&late) == "true\n");
        ours.shutdown(Shutdown::Both).unwrap();
    });
    let e = ask(&mut c, json!([{"ready": word}, {"sleep": 400}]), Commit::When(&mut || true)).unwrap_err();
    assert!(e.may_have_run() && e.to_string().contains("ask again under the same job id"), "{e}");
    cutter.join().unwrap();
    served.join().unwrap().unwrap();

    // Granted from the start: it is done for nobody.
    let (mut c, ours, served) = connected();
    let [fill, word] = ["fill4", "word4"].map(|n| dir.path().join(n));
    let seen = fill.clone();
    let cutter = std::thread::spawn(move || {
        eventually("the job begins", || !text(&seen).is_empty());
        ours.shutdown(Shutdown::Both).unwrap();
    });
    let body = json!([{"note": fill}, {"sleep": 100}, {"ready": word}]);
    assert!(ask(&mut c, body, Commit::Now).unwrap_err().may_have_run());
    cutter.join().unwrap();
    served.join().unwrap().unwrap();
    assert_eq!(text(&word), "true\n");
}

#[test]
fn cancel_goes_through_and_sigterm_too() {
    for by_us in [true, false] {
        let (ours, served) = {
            let stop = Cancel::default();
            let (ours, served) = agent(&stop);
            if !by_us {
                std::thread::spawn(move || {
                    stop.wait(Duration::from_millis(100));
                    stop.request();
                });
            }
            (ours, served)
        };
        let mut c = client_of(&ours).unwrap();
        let cancel = Cancel::default();
        if by_us {
            let cancel = cancel.clone();
            std::thread::spawn(move || {
                cancel.wait(Duration::from_millis(100));
                cancel.request();
            });
        }
        let begin = Instant::now();
        let body = json!([{"sleep": 60_000}, {"ready": "/no/such/file"}]);
        let request = Request { job: "j", body, commit: Commit::When(&mut || panic!()), source: None };
        let e = c.call(request, &mut |_| {}, &cancel).unwrap_err();
        assert!(e.class() == Class::Cancelled && !e.may_have_run(), "{e}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        served.join().unwrap().unwrap();
    }
}

/// What a front-end could say that it must not.
#[test]
fn words_out_of_turn_publish_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let word = dir.path().join("word");
    let request = |id| Control::Request {
        id,
        job: "j".into(),
        body: json!([{"sleep": 50}, {"ready": word}]),
        commit: false,
    };
    let ready = || Control::Ready { id: 1 };
    for (n, words) in [
        vec![request(1), Control::Commit { id: 1 }],
        vec![request(1), Control::Abandon { id: 1 }],
        vec![request(1), Control::Commit { id: 2 }],
        vec![request(1), request(2)],
        vec![request(1), Control::Cancel { id: 9 }],
        vec![request(1), ready()],
        vec![Control::Commit { id: 1 }],
        vec![request(0)],
        vec![request(1), Control::Hello(Hello::ours())],
    ]
    .into_iter()
    .enumerate()
    {
        let (mut ours, served) = agent(&Cancel::default());
        for c in std::iter::once(Control::Hello(Hello::ours())).chain(words) {
            ours.write_all(&Frame::Control(c).encode().unwrap()).unwrap();
        }
        let e = served.join().unwrap().unwrap_err();
        assert!(matches!(e, WireError::Turn(_)), "{n}: {e}");
        assert!(!text(&word).contains("true"), "{n}");
    }
    // Not even a hello.
    let (mut ours, served) = agent(&Cancel::default());
    ours.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(served.join().unwrap(), Err(WireError::Text(_))));
}

#[test]
fn a_front_end_that_takes_nothing_does_not_hold_up_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let fill = dir.path().join("fill");
    let (mut ours, _served) = agent(&Cancel::default());
    let mut steps: Vec<Value> = (0..20_000).map(|n| json!({"progress": n})).collect();
    steps.push(json!({"note": fill}));
    let body = Value::Array(steps);
    let request = Control::Request { id: 1, job: "j".into(), body, commit: true };
    for c in [Control::Hello(Hello::ours()), request] {
        ours.write_all(&Frame::Control(c).encode().unwrap()).unwrap();
    }
    eventually("the job ends", || !text(&fill).is_empty());
}

/// A peer that says what it is told to say, then nothing.
fn mute(says: Vec<u8>) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        theirs.write_all(&says).unwrap();
        let _ = io::copy(&mut theirs, &mut io::sink());
    });
    ours
}

fn hello(protocol: u32, version: &str) -> Vec<u8> {
    let h = Hello { protocol, version: version.into(), ..Hello::ours() };
    Frame::Control(Control::Hello(h)).encode().unwrap()
}

#[test]
fn peers_that_are_silent_or_strange_are_given_up() {
    let e = client_of(&mute(vec![])).err().unwrap();
    assert!(matches!(e, HostError::Silent { stage: Stage::Connect, .. }), "{e}");
    let e = client_of(&mute(b"Last login: yesterday\r\n".to_vec())).err().unwrap();
    assert!(e.to_string().contains("login script"), "{e}");
    let e = client_of(&mute(hello(PROTOCOL + 1, "9.9"))).err().unwrap();
    assert!(e.class() == Class::Unsupported && e.to_string().contains("9.9"), "{e}");
    let mut c = client_of(&mute(hello(PROTOCOL, "9.9"))).unwrap();
    assert_eq!(c.peer().version, "9.9", "another version is no reason");
    let e = ask(&mut c, json!([]), Commit::When(&mut || true)).unwrap_err();
    assert!(matches!(e, HostError::Silent { stage: Stage::Asked, .. }), "{e}");
    for (says, fits) in
        [(Control::Commit { id: 1 }, false), (Control::Ready { id: 7 }, false), (Control::Ping, true)]
    {
        let more = Frame::Control(says).encode().unwrap();
        let mut c = client_of(&mute([hello(PROTOCOL, ""), more].concat())).unwrap();
        let e = ask(&mut c, json!([]), Commit::When(&mut || true)).unwrap_err();
        assert_eq!(matches!(e, HostError::Silent { .. }), fits, "{e}");
    }
}

/// A command, and what it does: an agent's protocol and version, or an exit status.
type Has = (&'static str, Result<(u32, &'static str), i32>);

/// A host on which commands do as listed.
struct Fake {
    has: Vec<Has>,
    tried: Mutex<Vec<String>>,
}

impl Connection for Fake {
    fn exec(&self, command: &str) -> Result<Box<dyn Pipe>, HostError> {
        self.tried.lock().unwrap().push(command.to_owned());
        let is = self.has.iter().find(|(c, _)| *c == command).map_or(Err(127), |(_, is)| *is);
        let (ours, ended) = match is {
            Ok((protocol, version)) => (mute(hello(protocol, version)), Ended::default()),
            Err(status) => {
                let (ours, _) = UnixStream::pair().unwrap();
                (ours, Ended { status: Some(status), said: "it said".into() })
            }
        };
        ours.set_nonblocking(true).unwrap();
        Ok(Box::new(Socket(ours, ended)))
    }

    fn sftp(&self) -> Result<Box<dyn Pipe>, HostError> {
        Err(HostError::NoAgent { host: "h".into(), why: "no sftp".into() })
    }
}

#[test]
fn the_agent_is_looked_for_in_order_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let ours = env!("CARGO_PKG_VERSION");
    let (a, b) = ("/usr/bin/onesdm agent", "/usr/local/bin/onesdm agent");
    let settings = Settings { hints: Some(dir.path().into()), ..settings() };
    let go = |has: Vec<Has>| {
        let fake = Fake { has, tried: Mutex::default() };
        let got = reach(&fake, "h", &settings, &Cancel::default());
        (got.map(|c| c.version().to_owned()), fake.tried.into_inner().unwrap())
    };
    let (got, tried) = go(vec![(b, Ok((PROTOCOL, ours)))]);
    assert_eq!((got.unwrap().as_str(), tried.len()), (ours, 2));
    let (got, tried) = go(vec![(b, Ok((PROTOCOL, ours)))]);
    assert_eq!((got.unwrap().as_str(), tried), (ours, vec![b.to_owned()]), "the hint");
    let (got, tried) = go(vec![(a, Ok((PROTOCOL, ours)))]);
    assert_eq!((got.unwrap().as_str(), tried.len()), (ours, 2), "the hint is out of date");
    let (got, _) = go(vec![(a, Ok((PROTOCOL, "0.0.1"))), (b, Ok((PROTOCOL, ours)))]);
    assert_eq!(got.unwrap(), ours, "ours before others");
    let (got, _) = go(vec![(a, Ok((PROTOCOL, "0.0.1")))]);
    assert_eq!(got.unwrap(), "0.0.1", "another before none");
    let (got, _) = go(vec![(a, Ok((PROTOCOL + 1, "9.9")))]);
    assert!(matches!(got, Err(HostError::Protocol { theirs, .. }) if theirs == PROTOCOL + 1));
    let (got, tried) = go(vec![]);
    assert!(got.unwrap_err().to_string().contains("looked for /usr/bin/onesdm"));
    assert_eq!(tried.len(), 4, "the old hint and the three places");
    let (got, _) = go(vec![(a, Err(139))]);
    assert!(got.unwrap_err().to_string().contains("status Some(139): it said"));
}

#[test]
fn the_agent_answers_a_ping_while_it_works() {
    let (mut ours, _served) = agent(&Cancel::default());
    let request = Control::Request { id: 1, job: "j".into(), body: json!([{"sleep": 60_000}]), commit: true };
    for c in [Control::Hello(Hello::ours()), request, Control::Ping] {
        ours.write_all(&Frame::Control(c).encode().unwrap()).unwrap();
    }
    let (mut d, mut buf) = (Decoder::default(), [0; 4096]);
    let mut names = Vec::new();
    while names.len() < 2 {
        let n = ours.read(&mut buf).unwrap();
        d.push(&buf[..n]);
        while let Some(f) = d.frame().unwrap() {
            names.push(f.name());
        }
    }
    assert_eq!(names, ["hello", "ping"]);
}
