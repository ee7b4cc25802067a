//! JSON lines, appended whole, rotated by size: `x.jsonl`, `x.jsonl.1`, … the highest the oldest.

use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
