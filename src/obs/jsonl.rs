//! JSON lines, appended whole, rotated by size: `x.jsonl`, `x.jsonl.1`, … the highest the oldest.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How far somebody has read: a file, whatever its name is by now, and a place in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    ino: u64,
    offset: u64,
}

/// A log file and how much of it to keep.
#[derive(Clone, Debug)]
pub struct Log {
    pub path: PathBuf,
    /// Rotated when larger, in bytes.
    pub max_size: u64,
    /// Rotated files kept.
    pub keep: u32,
}

impl Log {
    /// Appends one line. Lines of several processes do not mix: each is one write at the end.
    pub fn append<T: Serialize>(&self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let mut f = self.open()?;
        if f.metadata()?.len() + line.len() as u64 > self.max_size {
            self.rotate(&f)?;
            f = self.open()?;
        }
        f.write_all(&line)
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)
    }

    pub fn rotated(&self, n: u32) -> PathBuf {
        let mut p = self.path.clone().into_os_string();
        if n > 0 {
            p.push(format!(".{n}"));
        }
        p.into()
    }

    /// Under a lock on the file itself; who comes second finds another file in its place and leaves it.
    #[expect(clippy::disallowed_methods, reason = "logs are not storage: no effect of a job")]
    fn rotate(&self, f: &File) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt as _;
        f.lock()?;
        if std::fs::metadata(&self.path)?.ino() == f.metadata()?.ino() {
            for n in (0..self.keep).rev() {
                let _ = std::fs::rename(self.rotated(n), self.rotated(n + 1));
            }
            if self.keep == 0 {
                std::fs::remove_file(&self.path)?;
            }
        }
        Ok(())
    }

    /// Every line that parses, oldest first. A torn or foreign line is passed over.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> io::Result<Vec<T>> {
        let mut out = Vec::new();
        for n in (0..=self.keep).rev() {
            match File::open(self.rotated(n)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                f => read_lines(&f?, &mut out)?,
            }
        }
        Ok(out)
    }

    /// Every whole line that parses and was written since `mark`, which moves behind them. Without a mark, or
    /// when what it marks was rotated away, all that is there.
    pub fn since<T: serde::de::DeserializeOwned>(&self, mark: &mut Mark) -> io::Result<Vec<T>> {
        use std::io::{Read as _, Seek as _};
        use std::os::unix::fs::MetadataExt as _;
        let mut files = Vec::new();
        for n in 0..=self.keep {
            match File::open(self.rotated(n)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                f => files.push(f?),
            }
        }
        let mut new = Vec::new();
        for f in files {
            let m = f.metadata()?;
            let known = m.ino() == mark.ino && m.len() >= mark.offset;
            new.push((f, m.ino(), if known { mark.offset } else { 0 }));
            if known {
                break;
            }
        }
        let mut out = Vec::new();
        for (mut f, ino, from) in new.into_iter().rev() {
            let mut text = Vec::new();
            f.seek(io::SeekFrom::Start(from))?;
            f.read_to_end(&mut text)?;
            // What has no end yet is read next time.
            text.truncate(text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1));
            out.extend(text.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()));
            *mark = Mark { ino, offset: from + text.len() as u64 };
        }
        Ok(out)
    }
}

fn read_lines<T: serde::de::DeserializeOwned>(f: &File, out: &mut Vec<T>) -> io::Result<()> {
    for line in BufReader::new(f).split(b'\n') {
        if let Ok(v) = serde_json::from_slice(&line?) {
            out.push(v);
        }
    }
    Ok(())
}

/// The directory of a log, made when missing, for accounts that may.
pub fn prepare(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.exists() => std::fs::create_dir_all(dir),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_rotation_up_to_the_bound() {
        let t = tempfile::tempdir().unwrap();
        let log = Log { path: t.path().join("x.jsonl"), max_size: 40, keep: 2 };
        for i in 0..100 {
            log.append(&format!("line {i:02}")).unwrap();
        }
        let all: Vec<String> = log.read().unwrap();
        assert_eq!(all.last().unwrap(), "line 99");
        assert!(all.len() >= 6 && all.len() <= 12, "{}", all.len());
        assert!(all.windows(2).all(|w| w[0] < w[1]), "oldest first");
        assert_eq!(std::fs::read_dir(t.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_reader_that_comes_back_misses_nothing_and_counts_nothing_twice() {
        let t = tempfile::tempdir().unwrap();
        let log = Log { path: t.path().join("x"), max_size: 40, keep: 2 };
        let mut mark = Mark::default();
        assert!(log.since::<u32>(&mut mark).unwrap().is_empty());
        let mut seen = Vec::new();
        for i in 10..40_u32 {
            log.append(&i).unwrap();
            if i % 7 == 0 {
                let text = serde_json::to_string(&mark).unwrap();
                mark = serde_json::from_str(&text).unwrap();
                seen.extend(log.since::<u32>(&mut mark).unwrap());
            }
        }
        seen.extend(log.since::<u32>(&mut mark).unwrap());
        assert_eq!(seen, (10..40).collect::<Vec<_>>());
        std::fs::write(&log.path, "50\n5").unwrap();
        assert_eq!(log.since::<u32>(&mut Mark { ino: 0, offset: 9 }).unwrap().last(), Some(&50));
        let mut f = OpenOptions::new().append(true).open(&log.path).unwrap();
        let mut mark = Mark::default();
        log.since::<u32>(&mut mark).unwrap();
        f.write_all(b"1\n").unwrap();
        assert_eq!(log.since::<u32>(&mut mark).unwrap(), [51]);
    }

    #[test]
    fn a_torn_line_hides_no_other() {
        let t = tempfile::tempdir().unwrap();
        let log = Log { path: t.path().join("x"), max_size: 1 << 20, keep: 1 };
        std::fs::write(&log.path, "\"a\"\n{\"torn\": \n\"b\"\n\"half").unwrap();
        assert_eq!(log.read::<String>().unwrap(), ["a", "b"]);
    }

    #[test]
    fn threads_do_not_tear_lines() {
        let t = tempfile::tempdir().unwrap();
        let log = Log { path: t.path().join("x"), max_size: 2000, keep: 1000 };
        std::thread::scope(|s| {
            for i in 0..4 {
                let log = &log;
                s.spawn(move || (0..100).for_each(|j| log.append(&(i, j, "x".repeat(50))).unwrap()));
            }
        });
        assert_eq!(log.read::<(u32, u32, String)>().unwrap().len(), 400);
    }
}
