//! Placing the program, against a small sftp server in memory that can be told to misbehave.

use super::install::{Program, reach};
use super::transport::{Connection, Ended, Pipe};
use super::wire::{Control, Frame, Hello};
use super::{HostError, Settings};
use crate::sys::Cancel;
use crate::sys::Class;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Mode with type, content.
type File = (u32, Vec<u8>);
type Files = BTreeMap<String, File>;

#[derive(Default)]
struct Disk {
    files: Files,
    /// Misbehaviour.
    fault: Fault,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// Stores another byte than it got.
    Flips,
    /// Has no room.
    Full,
    /// Answers with a packet of this length, and nothing in it.
    Lies(u32),
    Ends,
    Silent,
}

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Takes the next string off a packet.
fn string(p: &mut &[u8]) -> String {
    let len = u32::from_be_bytes(p[..4].try_into().unwrap()) as usize;
    let s = String::from_utf8_lossy(&p[4..4 + len]).into_owned();
    *p = &p[4 + len..];
    s
}

fn long(p: &mut &[u8]) -> u64 {
    let n = u64::from_be_bytes(p[..8].try_into().unwrap());
    *p = &p[8..];
    n
}

impl Disk {
    /// The answer to one packet: kind and body after the request's number.
    fn answer(&mut self, kind: u8, mut p: &[u8]) -> (u8, Vec<u8>) {
        let p = &mut p;
        let status = |code: u32| (101, [code.to_be_bytes(), 0u32.to_be_bytes(), [0; 4]].concat());
        match kind {
            7 => match self.files.get(&string(p)) {
                Some((mode, content)) => {
                    let size = (content.len() as u64).to_be_bytes();
                    (105, [&5u32.to_be_bytes()[..], &size, &mode.to_be_bytes()].concat())
                }
                None => status(2),
            },
            14 => {
                let path = string(p);
                let mode = u32::from_be_bytes(p[4..8].try_into().unwrap());
                self.files.insert(path, (DIR | mode, vec![]));
                status(0)
            }
            3 => {
                let path = string(p);
                let creates = p[3] & 8 != 0;
                if creates {
                    self.files.insert(path.clone(), (FILE | 0o600, vec![]));
                }
                let len = u32::try_from(path.len()).unwrap();
                (102, [&len.to_be_bytes()[..], path.as_bytes()].concat())
            }
            6 if self.fault == Fault::Full => status(4),
            6 => {
                let (path, at) = (string(p), usize::try_from(long(p)).unwrap());
                let mut data = p[4..].to_vec();
                if self.fault == Fault::Flips {
                    data[0] ^= 1;
                }
                let file = &mut self.files.get_mut(&path).unwrap().1;
                file.resize(file.len().max(at + data.len()), 0);
                file[at..at + data.len()].copy_from_slice(&data);
                status(0)
            }
            5 => {
                let (path, at) = (string(p), usize::try_from(long(p)).unwrap());
                let len = u32::from_be_bytes(p[..4].try_into().unwrap()) as usize;
                let data = &self.files[&path].1[at..][..len];
                (103, [&p[..4], data].concat())
            }
            10 => {
                let path = string(p);
                let mode = u32::from_be_bytes(p[4..8].try_into().unwrap());
                self.files.get_mut(&path).unwrap().0 = FILE | mode;
                status(0)
            }
            13 => {
                self.files.remove(&string(p));
                status(0)
            }
            200 if string(p).starts_with("posix-rename") => {
                let (from, to) = (string(p), string(p));
                let file = self.files.remove(&from).unwrap();
                self.files.insert(to, file);
                status(0)
            }
            4 | 200 => status(0),
            _ => status(8),
        }
    }
}

/// The server's end of a pipe.
struct Server {
    disk: Arc<Mutex<Disk>>,
    came: Vec<u8>,
    out: Vec<u8>,
}

impl Pipe for Server {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.out.is_empty() {
            let ends = self.disk.lock().unwrap().fault == Fault::Ends;
            return if ends { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let n = buf.len().min(self.out.len());
        buf[..n].copy_from_slice(&self.out[..n]);
        self.out.drain(..n);
        Ok(n)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.came.extend_from_slice(bytes);
        let mut disk = self.disk.lock().unwrap();
        while let Some(head) = self.came.first_chunk::<4>() {
            let len = u32::from_be_bytes(*head) as usize;
            if self.came.len() < 4 + len {
                break;
            }
            let packet: Vec<u8> = self.came.drain(..4 + len).skip(4).collect();
            let body = match (packet[0], disk.fault) {
                (_, Fault::Silent | Fault::Ends) => continue,
                (_, Fault::Lies(n)) => {
                    self.out.extend(n.to_be_bytes());
                    self.out.extend([101; 40]);
                    continue;
                }
                (1, _) => vec![2, 0, 0, 0, 3],
                (kind, _) => {
                    let (answer, body) = disk.answer(kind, &packet[5..]);
                    [&[answer][..], &packet[1..5], &body].concat()
                }
            };
            self.out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            self.out.extend(body);
        }
        Ok(bytes.len())
    }

    fn wait(&mut self, _: bool, _: Option<BorrowedFd<'_>>, d: Duration) {
        Cancel::default().wait(d.min(Duration::from_millis(1)));
    }

    fn end(&mut self, _: Duration) -> Ended {
        Ended::default()
    }
}

/// Says hello when the program that is started is ours, to the byte.
struct Started(Vec<u8>, Ended);

impl Pipe for Started {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min(self.0.len());
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0.drain(..n);
        Ok(n)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn wait(&mut self, _: bool, _: Option<BorrowedFd<'_>>, _: Duration) {}
    fn end(&mut self, _: Duration) -> Ended {
        std::mem::take(&mut self.1)
    }
}

struct Host(Arc<Mutex<Disk>>, Vec<u8>);

impl Connection for Host {
    fn exec(&self, command: &str) -> Result<Box<dyn Pipe>, HostError> {
        let disk = self.0.lock().unwrap();
        let file = disk.files.get(command.strip_suffix(" agent").unwrap());
        if let Some((mode, content)) = file {
            assert!(*content == self.1 && *mode == FILE | 0o700, "something else is run");
            let hello = Frame::Control(Control::Hello(Hello::ours())).encode().unwrap();
            return Ok(Box::new(Started(hello, Ended::default())));
        }
        Ok(Box::new(Started(vec![], Ended { status: Some(127), said: String::new() })))
    }

    fn sftp(&self) -> Result<Box<dyn Pipe>, HostError> {
        Ok(Box::new(Server { disk: self.0.clone(), came: vec![], out: vec![] }))
    }
}

/// One attempt to reach a host on which `disk` is; what is there afterwards.
fn go(disk: Disk) -> (Result<(), HostError>, Files) {
    let dir = tempfile::tempdir().unwrap();
    let program: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(dir.path().join("p"), &program).unwrap();
    let silence = Duration::from_millis(300);
    let settings =
        Settings { program: Some(Program { path: dir.path().join("p") }), silence, ..Settings::default() };
    let disk = Arc::new(Mutex::new(disk));
    let got = reach(&Host(disk.clone(), program), "h", &settings, &Cancel::default());
    let files = std::mem::take(&mut disk.lock().unwrap().files);
    (got.map(drop), files)
}

fn only_file(files: &Files) -> Option<String> {
    let mut all = files.iter().filter(|(_, f)| f.0 & FILE != 0).map(|(n, _)| n.clone());
    let first = all.next();
    assert_eq!(all.next(), None, "one file and no more");
    first
}

#[test]
fn the_program_arrives_whole_and_private() {
    let (got, files) = go(Disk::default());
    got.unwrap();
    let path = only_file(&files).unwrap();
    assert!(path.starts_with(".local/lib/onesdm/") && path.ends_with("/onesdm"), "{path}");
    assert!(files.values().filter(|f| f.0 & DIR != 0).all(|f| f.0 == DIR | 0o700));
    // There already: not sent again, which would fail.
    go(Disk { files: files.clone(), fault: Fault::Full }).0.unwrap();
    // Another content, another length, another mode: replaced.
    let changes: [fn(&mut File); 3] = [|f| f.1[7] ^= 1, |f| f.1.truncate(5), |f| f.0 = FILE | 0o777];
    for change in changes {
        let mut damaged = files.clone();
        change(damaged.get_mut(&path).unwrap());
        let (got, now) = go(Disk { files: damaged, fault: Fault::None });
        got.unwrap();
        assert_eq!(now, files);
    }
}

#[test]
fn what_does_not_arrive_as_it_left_is_not_run() {
    let (got, files) = go(Disk { fault: Fault::Flips, ..Disk::default() });
    let e = got.unwrap_err();
    assert!(matches!(e, HostError::Digest { .. }) && e.class() == Class::Integrity, "{e}");
    assert_eq!(only_file(&files), None);
    let (got, files) = go(Disk { fault: Fault::Full, ..Disk::default() });
    assert!(got.unwrap_err().to_string().contains("writing a file"));
    assert_eq!(only_file(&files), None);
}

#[test]
fn servers_that_are_strange_or_silent_are_given_up() {
    for (fault, says) in [
        (Fault::Lies(0), "answer that is none"),
        (Fault::Lies(u32::MAX), "answer that is none"),
        (Fault::Lies(30), "answer that is none"),
        (Fault::Ends, "sftp ended"),
        (Fault::Silent, "sftp silent"),
    ] {
        let e = go(Disk { fault, ..Disk::default() }).0.unwrap_err();
        assert!(matches!(e, HostError::NoAgent { .. }) && e.to_string().contains(says), "{e}");
    }
}

#[test]
fn places_that_others_can_write_to_are_not_used() {
    for mode in [DIR | 0o777, DIR | 0o720, FILE | 0o700, 0o120_777] {
        let files = [(".local", DIR | 0o755), (".local/lib", DIR | 0o755), (".local/lib/onesdm", mode)];
        let files = files.map(|(n, m)| (n.to_owned(), (m, vec![]))).into();
        let e = go(Disk { files, fault: Fault::None }).0.unwrap_err();
        assert!(e.to_string().contains("only its owner"), "{mode:o}: {e}");
    }
}
