//! XML from outside: one pass, nothing kept but what a visitor asks for, the same limits for every
//! document. Values by name, and how they are read as numbers, sizes and flags.

use super::{MAX_DUMP, OneError};
use crate::sys::Bytes;
use base64::Engine as _;
use quick_xml::events::Event;
use std::borrow::Cow;
use std::collections::BTreeMap;

const MAX_DEPTH: usize = 64;

/// What a visitor wants of an element.
pub(super) enum Want {
    /// Its text; elements in it are an error.
    Value,
    /// To be asked about the elements in it.
    Inside,
    /// Only that it is well-formed.
    Nothing,
}

/// Gets the elements in document order. Paths are relative to the root: `TEMPLATE/DISK`.
pub(super) trait Visit {
    fn open(&mut self, parent: &str, name: &str) -> Result<Want, OneError>;
    /// The text of an element that was wanted as a value; white space only is empty.
    fn value(&mut self, path: &str, text: String) -> Result<(), OneError>;
}

/// A document as text: plain, or as base64 (line ends allowed). `doc` is what messages call it.
pub(super) fn decode<'b>(doc: &'static str, bytes: &'b [u8], limit: u64) -> Result<Cow<'b, str>, OneError> {
    let first = bytes.iter().position(|b| !b.is_ascii_whitespace()).ok_or(OneError::Empty { doc })?;
    let bytes = &bytes[first..];
    let plain = bytes[0] == b'<' || bytes.starts_with("\u{feff}".as_bytes());
    let xml = if plain { Cow::Borrowed(bytes) } else { Cow::Owned(from_base64(doc, bytes, first)?) };
    if xml.len() as u64 > limit {
        return Err(OneError::TooLarge { doc, limit: Bytes(limit) });
    }
    let invalid = |e: std::str::Utf8Error| OneError::Encoding { doc, at: e.valid_up_to() };
    Ok(match xml {
        Cow::Borrowed(b) => Cow::Borrowed(std::str::from_utf8(b).map_err(invalid)?),
        Cow::Owned(b) => Cow::Owned(String::from_utf8(b).map_err(|e| invalid(e.utf8_error()))?),
    })
}

fn from_base64(doc: &'static str, bytes: &[u8], offset: usize) -> Result<Vec<u8>, OneError> {
    use base64::engine::general_purpose::STANDARD;
    // oned writes no line ends; looking for them first would cost as much as decoding.
    let bytes = bytes.trim_ascii_end();
    let decoded = STANDARD.decode(bytes).or_else(|e| match e {
        base64::DecodeError::InvalidByte(at, b) if b.is_ascii_whitespace() => {
            let mut dense = bytes[..at].to_vec();
            dense.extend(bytes[at..].iter().filter(|b| !b.is_ascii_whitespace()));
            STANDARD.decode(dense)
        }
        e => Err(e),
    });
    decoded.map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _) => at,
            _ => bytes.len(),
        };
        OneError::Base64 { doc, at: at + offset }
    })
}

/// Reads a whole document whose root is `root`, as base64 or plain XML of at most 32 MiB.
pub(super) fn read(
    doc: &'static str,
    root: &'static str,
    bytes: &[u8],
    visit: &mut dyn Visit,
) -> Result<(), OneError> {
    scan(doc, root, "", &decode(doc, bytes, MAX_DUMP)?, visit)
}

/// Shows `text` to a visitor, the whole of which must be well-formed. Paths begin with `base`.
pub(super) fn scan(
    doc: &'static str,
    root: &'static str,
    base: &str,
    text: &str,
    visit: &mut dyn Visit,
) -> Result<(), OneError> {
    if let Some(at) = text.find('\0') {
        return Err(OneError::Xml { doc, at: at as u64, what: "NUL byte".into() });
    }
    let path = base.to_owned();
    let mut scan = Scan { doc, root, visit, depth: 0, path, value: None, skipped: 0, root_seen: false };
    scan.run(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The state of the one pass.
struct Scan<'v> {
    doc: &'static str,
    root: &'static str,
    visit: &'v mut dyn Visit,
    /// Open elements, the root included.
    depth: usize,
    /// The innermost open element that was wanted inside.
    path: String,
    /// The value being read, and its text so far.
    value: Option<(String, String)>,
    /// How many of the open elements lie in a subtree nobody wants.
    skipped: usize,
    root_seen: bool,
}

impl Scan<'_> {
    fn run(&mut self, text: &str) -> Result<(), OneError> {
        let mut reader = quick_xml::Reader::from_str(text);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        config.check_comments = true;
        loop {
            let event = reader.read_event().map_err(|e| self.bad(reader.error_position(), one_line(&e)))?;
            let at = reader.buffer_position();
            match event {
                Event::Start(e) => {
                    // Without the check for equal names: it is quadratic in their number.
                    if let Some(bad) = e.attributes().with_checks(false).find_map(Result::err) {
                        return Err(self.bad(at, one_line(&bad)));
                    }
                    self.open(e.name().as_ref(), at)?;
                }
                Event::End(_) => self.close()?,
                Event::Text(e) => self.text(&e, at)?,
                Event::CData(e) if self.depth == 0 => return Err(self.outside(&e, at)),
                Event::CData(e) => self.append(&e),
                Event::GeneralRef(e) => {
                    let resolved = match e.resolve_char_ref() {
                        Ok(Some('\0')) | Err(_) => None,
                        Ok(Some(c)) => Some(Cow::Owned(c.to_string())),
                        Ok(None) => quick_xml::escape::resolve_predefined_entity(&e).map(Cow::Borrowed),
                    };
                    let Some(resolved) = resolved else {
                        let entity = e.chars().take(40).collect();
                        return Err(OneError::Entity { doc: self.doc, entity });
                    };
                    self.text(&resolved, at)?;
                }
                Event::DocType(_) => {
                    return Err(OneError::Entity { doc: self.doc, entity: "DOCTYPE".into() });
                }
                Event::Decl(e) => match e.encoding() {
                    Some(Ok(name)) if !["utf-8", "us-ascii"].contains(&name.to_lowercase().as_str()) => {
                        return Err(self.bad(at, format!("encoding {name:?}, expected UTF-8")));
                    }
                    _ => {}
                },
                Event::Comment(_) | Event::PI(_) | Event::Empty(_) => {}
                Event::Eof => break,
            }
        }
        if self.depth > 0 || !self.root_seen {
            let what = if self.root_seen { "ends inside an element" } else { "has no element" };
            return Err(self.bad(text.len() as u64, what.into()));
        }
        Ok(())
    }

    fn open(&mut self, name: &str, at: u64) -> Result<(), OneError> {
        let doc = self.doc;
        if let Some((path, _)) = &self.value {
            return Err(OneError::NoValue { doc, path: path.clone() });
        }
        // The reader takes any bytes; a slash would make one name look like a path.
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b) || !b.is_ascii()) {
            return Err(self.bad(at, format!("element name {:?}", one_line(&name))));
        }
        match self.depth {
            0 if self.root_seen => return Err(self.outside(name, at)),
            0 if name != self.root => {
                return Err(OneError::Root { doc, found: one_line(&name), want: self.root });
            }
            0 => self.root_seen = true,
            MAX_DEPTH => return Err(OneError::Depth { doc, limit: MAX_DEPTH }),
            _ if self.skipped > 0 => self.skipped += 1,
            _ => match self.visit.open(&self.path, name)? {
                Want::Nothing => self.skipped = 1,
                Want::Inside => self.path = join(&self.path, name),
                Want::Value => self.value = Some((join(&self.path, name), String::new())),
            },
        }
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), OneError> {
        // The reader has already refused an end without a start.
        self.depth = self.depth.saturating_sub(1);
        if self.skipped > 0 {
            self.skipped -= 1;
            return Ok(());
        }
        let Some((path, mut value)) = self.value.take() else {
            self.path.truncate(self.path.rfind('/').unwrap_or(0));
            return Ok(());
        };
        if value.trim_ascii().is_empty() {
            value.clear();
        }
        self.visit.value(&path, value)
    }

    fn text(&mut self, text: &str, at: u64) -> Result<(), OneError> {
        if self.depth == 0 && !text.trim_ascii().is_empty() {
            return Err(self.outside(text, at));
        }
        self.append(text);
        Ok(())
    }

    fn append(&mut self, text: &str) {
        if let Some((_, value)) = &mut self.value {
            value.push_str(text);
        }
    }

    fn outside(&self, text: &str, at: u64) -> OneError {
        self.bad(at, format!("{:?} outside the root element", text.chars().take(40).collect::<String>()))
    }

    fn bad(&self, at: u64, what: String) -> OneError {
        OneError::Xml { doc: self.doc, at, what }
    }
}

pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// Text from outside for messages: short, and without its line ends.
pub(super) fn one_line(e: &impl std::fmt::Display) -> String {
    e.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
}

/// Values of a document, or of one section of it, by name. As they came: no trimming.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    doc: &'static str,
    /// The section, for messages: `TEMPLATE/DISK`.
    section: &'static str,
    map: BTreeMap<String, String>,
}

impl Values {
    pub(super) fn new(doc: &'static str, section: &'static str) -> Values {
        Values { doc, section, map: BTreeMap::new() }
    }

    /// A value that comes twice must be the same both times.
    pub(super) fn put(&mut self, name: &str, value: String) -> Result<(), OneError> {
        match self.map.get(name) {
            Some(had) if *had != value => Err(self.ambiguous(name)),
            Some(_) => Ok(()),
            None => {
                self.map.insert(name.to_owned(), value);
                Ok(())
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.map.iter()
    }

    /// `None` when absent or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.map.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    pub(super) fn words(&self, name: &str) -> Vec<String> {
        self.get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v.trim() == "1" || super::is_yes(v))
    }

    /// Anything but a written `no`.
    pub(super) fn unless_no(&self, name: &str) -> bool {
        !self.get(name).is_some_and(|v| v.trim().eq_ignore_ascii_case("no"))
    }

    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, OneError> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => text.trim().parse().map(Some).map_err(|_| self.bad(name, "a number")),
        }
    }

    /// A size the document gives in MiB.
    pub(super) fn mib(&self, name: &str) -> Result<Option<Bytes>, OneError> {
        let Some(mib) = self.number(name)? else { return Ok(None) };
        Bytes::mib(mib).map(Some).ok_or_else(|| self.bad(name, "a size in MiB"))
    }

    /// A number the document must have.
    pub(super) fn need<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, OneError> {
        self.number(name)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn ambiguous(&self, name: &str) -> OneError {
        OneError::Ambiguous { doc: self.doc, path: self.path(name) }
    }

    pub(super) fn missing(&self, name: &str) -> OneError {
        OneError::Missing { doc: self.doc, path: self.path(name) }
    }

    pub(super) fn bad(&self, name: &str, want: &'static str) -> OneError {
        let value = self.get(name).unwrap_or_default().chars().take(80).collect();
        OneError::Value { doc: self.doc, path: self.path(name), value, want }
    }

    fn path(&self, name: &str) -> String {
        join(self.section, name)
    }
}
