//! Numbers in the text format of Prometheus, for the textfile collector of its node exporter.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A page of metrics being written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Into<f64>) {
        self.0 += name;
        for (i, (key, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{text}\"", if i == 0 { '{' } else { ',' });
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {}", value.into());
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Replaces a file that others read at any time: they see the old text or the new one. Lost in a crash it is
/// written again, so nothing is flushed.
#[expect(clippy::disallowed_methods, reason = "what is told of the work is not storage")]
pub fn publish(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    // Collectors read what ends in .prom and nothing else.
    let tmp = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let mut f = std::fs::File::options().write(true).create(true).truncate(true).mode(0o644).open(&tmp)?;
    f.write_all(text.as_bytes())?;
    std::fs::rename(&tmp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted_and_numbers_plain() {
        let mut p = Page::default();
        p.family("x_total", "counter", "What it counts.");
        p.sample("x_total", &[], 3);
        p.sample("x_total", &[("path", "a\\b\"c\nd"), ("v", "")], 0.25);
        p.sample("x_total", &[], 1e20);
        assert_eq!(
            p.text(),
            "# HELP x_total What it counts.\n# TYPE x_total counter\nx_total 3\n\
             x_total{path=\"a\\\\b\\\"c\\nd\",v=\"\"} 0.25\nx_total 100000000000000000000\n"
        );
    }

    #[test]
    fn a_file_is_replaced_whole_and_readable_by_all() {
        use std::os::unix::fs::PermissionsExt as _;
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("a.prom");
        publish(&path, "1\n").unwrap();
        let old = std::fs::File::open(&path).unwrap();
        publish(&path, "22\n").unwrap();
        assert_eq!(std::io::read_to_string(old).unwrap(), "1\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "22\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o444, 0o444);
        assert_eq!(std::fs::read_dir(t.path()).unwrap().count(), 1);
    }
}
