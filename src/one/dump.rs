//! The message oned sends with a datastore verb: where it comes from, and the few values of it that
//! anybody reads. One pass, nothing else kept: a datastore with 100,000 images costs no memory.

use super::OneError;
use crate::sys::Bytes;
use base64::Engine as _;
use quick_xml::events::Event;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;

/// Largest message accepted, as XML.
pub const MAX_DUMP: u64 = 32 * Bytes::MIB;
/// The same as base64, with room for line ends.
const MAX_ENCODED: u64 = MAX_DUMP / 3 * 4 + MAX_DUMP / 16;
const MAX_DEPTH: usize = 64;
const ROOT: &str = "DS_DRIVER_ACTION_DATA";

/// The values verbs read, below the root. Everything else is checked to be well-formed and dropped.
const USED: &[(&str, &[&str])] = &[
    ("", &["DATASTORE_LOCATION", "MONITOR_VM_DISKS", "SOURCE_BRIDGE_LIST", "TARGET_SNAPSHOT"]),
    (
        "IMAGE",
        &[
            "CLONING_ID",
            "CLONING_OPS",
            "FORMAT",
            "FS",
            "FSTYPE",
            "ID",
            "PATH",
            "PERSISTENT",
            "REGTIME",
            "RUNNING_VMS",
            "SIZE",
            "SOURCE",
            "STATE",
            "TARGET_SNAPSHOT",
            "TYPE",
        ],
    ),
    ("IMAGE/TEMPLATE", &["DRIVER", "MD5", "SHA1", "SHA256", "SHA512"]),
    ("DATASTORE", &["BASE_PATH", "DISK_TYPE", "DS_MAD", "ID", "TM_MAD", "TYPE"]),
    (
        "DATASTORE/TEMPLATE",
        &[
            "BRIDGE_LIST",
            "CONVERT",
            "DISK_TYPE",
            "DRIVER",
            "LIMIT_TRANSFER_BW",
            "NFS_AUTO_ENABLE",
            "NFS_AUTO_HOST",
            "NFS_AUTO_OPTS",
            "NFS_AUTO_PATH",
            "NO_DECOMPRESS",
            "RESTRICTED_DIRS",
            "SAFE_DIRS",
            "SPARSE",
            "STAGING_DIR",
        ],
    ),
    ("MARKETPLACE", &["ID", "MARKET_MAD"]),
];

fn is_used(parent: &str, name: &str) -> bool {
    (parent == "DATASTORE/TEMPLATE" && name.starts_with("ONESDM_"))
        || USED.iter().any(|(p, names)| *p == parent && names.binary_search(&name).is_ok())
}

/// A datastore verb's message and the object id given beside it.
#[derive(Debug)]
pub struct DsCall {
    pub dump: Vec<u8>,
    pub id: Option<i64>,
}

impl DsCall {
    /// Finds the message, for both generations of the contract. `args` are the arguments after the
    /// program's name: `<id>` with the message on `stdin`, or `<message> [<id>]`. Of `stdin` at most
    /// the largest legal message is read, and nothing when the arguments hold it.
    pub fn from(args: &[OsString], mut stdin: impl Read) -> Result<DsCall, OneError> {
        let (dump_arg, id_arg) = match args.first() {
            Some(first) if decimal(first).is_none() => (Some(first), args.get(1).map(|a| (2, a))),
            first => (None, first.map(|a| (1, a))),
        };
        let id = match id_arg {
            None => None,
            Some((position, arg)) => Some(decimal(arg).ok_or_else(|| OneError::Argument {
                position,
                value: arg.to_string_lossy().chars().take(80).collect(),
                want: "an object id",
            })?),
        };
        let mut dump = Vec::new();
        if let Some(arg) = dump_arg {
            dump.extend(arg.as_encoded_bytes());
        } else {
            let read = stdin.by_ref().take(MAX_ENCODED + 1).read_to_end(&mut dump);
            read.map_err(|source| OneError::Stdin { source })?;
        }
        if dump.len() as u64 > MAX_ENCODED {
            return Err(OneError::TooLarge { limit: Bytes(MAX_DUMP) });
        }
        Ok(DsCall { dump, id })
    }
}

fn decimal(arg: &OsString) -> Option<i64> {
    let text = arg.to_str()?;
    // Not `parse` alone: it takes "+1" too, and base64 may begin with a plus.
    text.bytes().all(|b| b.is_ascii_digit() || b == b'-').then(|| text.parse().ok())?
}

/// The values of a datastore message by path below the root, e.g. `IMAGE/TEMPLATE/MD5`, as they came:
/// no trimming, but text of white space only is empty.
#[derive(Debug, Default)]
pub struct DsDump {
    values: BTreeMap<String, String>,
    has_image: bool,
    has_datastore: bool,
}

impl DsDump {
    /// Reads a message in base64 (line ends allowed) or plain XML. The whole of it must be
    /// well-formed; a value that comes twice must be the same both times.
    pub fn parse(bytes: &[u8]) -> Result<DsDump, OneError> {
        let first = bytes.iter().position(|b| !b.is_ascii_whitespace()).ok_or(OneError::Empty)?;
        let bytes = &bytes[first..];
        let plain = bytes[0] == b'<' || bytes.starts_with("\u{feff}".as_bytes());
        let xml = if plain { Cow::Borrowed(bytes) } else { Cow::Owned(decode(bytes, first)?) };
        if xml.len() as u64 > MAX_DUMP {
            return Err(OneError::TooLarge { limit: Bytes(MAX_DUMP) });
        }
        let text = std::str::from_utf8(&xml).map_err(|e| OneError::Encoding { at: e.valid_up_to() })?;
        if let Some(at) = text.find('\0') {
            return Err(OneError::Xml { at: at as u64, what: "NUL byte".into() });
        }
        Scan::default().run(text.strip_prefix('\u{feff}').unwrap_or(text))
    }

    /// The value at a path below the root; `None` when absent or empty.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub fn has_image(&self) -> bool {
        self.has_image
    }

    pub fn has_datastore(&self) -> bool {
        self.has_datastore
    }

    /// The datastore's `ONESDM_*` attributes under their whole names: a layer of the configuration.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mine = self.values.iter().filter_map(|(path, value)| {
            let key = path.strip_prefix("DATASTORE/TEMPLATE/")?;
            key.starts_with("ONESDM_").then(|| (key.to_owned(), value.clone()))
        });
        mine.collect()
    }
}

fn decode(bytes: &[u8], offset: usize) -> Result<Vec<u8>, OneError> {
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
        OneError::Base64 { at: at + offset }
    })
}

/// The state of the one pass.
#[derive(Default)]
struct Scan {
    out: DsDump,
    /// Open elements, the root included.
    depth: usize,
    /// The innermost open element that has used ones in it, as a path below the root.
    path: String,
    /// The used element being read, and its text so far.
    value: Option<(String, String)>,
    /// How many of the open elements lie in a subtree nobody reads.
    skipped: usize,
    root_seen: bool,
}

impl Scan {
    fn run(mut self, text: &str) -> Result<DsDump, OneError> {
        let mut reader = quick_xml::Reader::from_str(text);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        config.check_comments = true;
        loop {
            let event = reader
                .read_event()
                .map_err(|e| OneError::Xml { at: reader.error_position(), what: one_line(&e) })?;
            let at = reader.buffer_position();
            match event {
                Event::Start(e) => {
                    // Without the check for equal names: it is quadratic in their number.
                    if let Some(bad) = e.attributes().with_checks(false).find_map(Result::err) {
                        return Err(OneError::Xml { at, what: one_line(&bad) });
                    }
                    self.open(e.name().as_ref(), at)?;
                }
                Event::End(_) => self.close()?,
                Event::Text(e) => self.text(&e, at)?,
                Event::CData(e) if self.depth == 0 => return Err(outside(&e, at)),
                Event::CData(e) => self.append(&e),
                Event::GeneralRef(e) => {
                    let resolved = match e.resolve_char_ref() {
                        Ok(Some('\0')) | Err(_) => None,
                        Ok(Some(c)) => Some(Cow::Owned(c.to_string())),
                        Ok(None) => quick_xml::escape::resolve_predefined_entity(&e).map(Cow::Borrowed),
                    };
                    let Some(resolved) = resolved else {
                        return Err(OneError::Entity { entity: e.chars().take(40).collect() });
                    };
                    self.text(&resolved, at)?;
                }
                Event::DocType(_) => return Err(OneError::Entity { entity: "DOCTYPE".into() }),
                Event::Decl(e) => match e.encoding() {
                    Some(Ok(name)) if !["utf-8", "us-ascii"].contains(&name.to_lowercase().as_str()) => {
                        return Err(OneError::Xml { at, what: format!("encoding {name:?}, expected UTF-8") });
                    }
                    _ => {}
                },
                Event::Comment(_) | Event::PI(_) | Event::Empty(_) => {}
                Event::Eof => break,
            }
        }
        if self.depth > 0 || !self.root_seen {
            let what = if self.root_seen { "ends inside an element" } else { "has no element" };
            return Err(OneError::Xml { at: text.len() as u64, what: what.into() });
        }
        Ok(self.out)
    }

    fn open(&mut self, name: &str, at: u64) -> Result<(), OneError> {
        if let Some((path, _)) = &self.value {
            return Err(OneError::NoValue { path: path.clone() });
        }
        // The reader takes any bytes; a slash would make one name look like a path.
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b) || !b.is_ascii()) {
            return Err(OneError::Xml { at, what: format!("element name {:?}", one_line(&name)) });
        }
        match self.depth {
            0 if self.root_seen => return Err(outside(name, at)),
            0 if name != ROOT => return Err(OneError::Root { found: one_line(&name) }),
            0 => self.root_seen = true,
            MAX_DEPTH => return Err(OneError::Depth { limit: MAX_DEPTH }),
            _ if self.skipped > 0 => self.skipped += 1,
            _ => self.enter(name)?,
        }
        self.depth += 1;
        Ok(())
    }

    fn enter(&mut self, name: &str) -> Result<(), OneError> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) };
        if is_used(&self.path, name) {
            self.value = Some((path, String::new()));
        } else if USED.iter().any(|(parent, _)| *parent == path) {
            let seen = match path.as_str() {
                "IMAGE" => &mut self.out.has_image,
                "DATASTORE" => &mut self.out.has_datastore,
                _ => &mut false,
            };
            if std::mem::replace(seen, true) {
                return Err(OneError::Ambiguous { path });
            }
            self.path = path;
        } else {
            self.skipped = 1;
        }
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
        match self.out.values.get(&path) {
            Some(had) if *had != value => return Err(OneError::Ambiguous { path }),
            Some(_) => {}
            None => {
                self.out.values.insert(path, value);
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str, at: u64) -> Result<(), OneError> {
        if self.depth == 0 && !text.trim_ascii().is_empty() {
            return Err(outside(text, at));
        }
        self.append(text);
        Ok(())
    }

    fn append(&mut self, text: &str) {
        if let Some((_, value)) = &mut self.value {
            value.push_str(text);
        }
    }
}

fn outside(text: &str, at: u64) -> OneError {
    let what = format!("{:?} outside the root element", text.chars().take(40).collect::<String>());
    OneError::Xml { at, what }
}

/// The parser's message quotes the document: short, and without its line ends.
fn one_line(e: &impl std::fmt::Display) -> String {
    e.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    const CP: &str = include_str!("../../tests/fixtures/documents/cp.xml");

    fn wrap(inner: &str) -> String {
        format!("<{ROOT}>{inner}</{ROOT}>")
    }

    fn parse(inner: &str) -> Result<DsDump, OneError> {
        DsDump::parse(wrap(inner).as_bytes())
    }

    #[test]
    fn base64_lines_and_plain_xml_mean_the_same() {
        let encoded = STANDARD.encode(CP);
        let lines: Vec<_> = encoded.as_bytes().chunks(60).map(|c| str::from_utf8(c).unwrap()).collect();
        let lines = lines.join(
            "
",
        );
        let bom = format!("\u{feff}{CP}");
        let declared = format!("<?xml version=\"1.0\" encoding='UTF-8'?>\n<!-- c -->{CP}<?pi?>\n");
        for form in [CP, &format!("\n {CP}\n"), &encoded, &lines, &bom, &declared] {
            let dump = DsDump::parse(form.as_bytes()).unwrap();
            assert_eq!(dump.get("IMAGE/PATH"), Some("/srv/images/lc1.raw"));
            assert_eq!(dump.get("DATASTORE/BASE_PATH"), Some("/var/lib/one//datastores/100"));
            assert_eq!(dump.get("IMAGE/SOURCE"), None);
            assert_eq!(dump.get("DATASTORE/TEMPLATE/SAFE_DIRS"), Some("/srv/images"));
            assert!(dump.has_image() && dump.has_datastore());
            assert!(!dump.values.contains_key("IMAGE/UNAME"));
        }
    }

    #[test]
    fn values_are_what_was_written() {
        for (xml, path, want) in [
            (
                "<IMAGE><PATH>/a&amp;b&lt;&gt;&quot;&apos;&#65;&#x42;</PATH></IMAGE>",
                "IMAGE/PATH",
                "/a&b<>\"'AB",
            ),
            (
                "<IMAGE><PATH><![CDATA[/a&amp;]]> b<![CDATA[]]>&#10;</PATH></IMAGE>",
                "IMAGE/PATH",
                "/a&amp; b\n",
            ),
            ("<IMAGE><PATH>/a<!-- x -->b<?pi?></PATH></IMAGE>", "IMAGE/PATH", "/ab"),
            ("<IMAGE><PATH x=\"1\" y='>'>/ä</PATH></IMAGE>", "IMAGE/PATH", "/ä"),
            ("<IMAGE><ID>1</ID><ID>1</ID></IMAGE>", "IMAGE/ID", "1"),
            ("<IMAGE><VMS><ID>1</ID><ID>2</ID></VMS><ID>3</ID></IMAGE>", "IMAGE/ID", "3"),
            (
                "<IMAGE><X><ID>1</ID></X><TEMPLATE><A><MD5>x</MD5></A><MD5>y</MD5></TEMPLATE></IMAGE>",
                "IMAGE/TEMPLATE/MD5",
                "y",
            ),
            (
                "<DATASTORE><TEMPLATE><ONESDM_LOCK_WAIT>1s</ONESDM_LOCK_WAIT></TEMPLATE></DATASTORE>",
                "DATASTORE/TEMPLATE/ONESDM_LOCK_WAIT",
                "1s",
            ),
        ] {
            assert_eq!(parse(xml).unwrap().get(path), Some(want), "{xml}");
        }
        for empty in ["<SIZE/>", "<SIZE></SIZE>", "<SIZE> \n</SIZE>", "<SIZE><![CDATA[]]></SIZE>"] {
            assert_eq!(parse(&format!("<IMAGE>{empty}</IMAGE>")).unwrap().get("IMAGE/SIZE"), None);
        }
    }

    #[test]
    fn hostile_documents_are_refused_in_one_line() {
        let deep = |n: usize| "<a>".repeat(n) + &"</a>".repeat(n);
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]>";
        let cases: Vec<(String, &str)> = vec![
            (String::new(), "empty"),
            (" \n".into(), "empty"),
            ("<X/>".into(), "expected DS_DRIVER_ACTION_DATA"),
            (wrap("") + &wrap(""), "outside the root"),
            (wrap("") + "x", "outside the root"),
            (wrap("") + "<![CDATA[x]]>", "outside the root"),
            (wrap("") + "&#65;", "outside the root"),
            (wrap("<A></B>"), "not well-formed"),
            (wrap("<A/B>x</A/B>"), "element name"),
            (wrap("<IMAGE/ID>x</IMAGE/ID>"), "element name"),
            (wrap("<A x='1></A>"), "not well-formed"),
            (wrap("<A x=1></A>"), "not well-formed"),
            (wrap("<A>&</A>"), "not well-formed"),
            (wrap("<A><!-- -- --></A>"), "not well-formed"),
            (wrap("<A>&x;</A>"), "entity \"x\""),
            (wrap("<A>&#0;</A>"), "entity"),
            (wrap("<A>&#xD800;</A>"), "entity"),
            (wrap("<A>\0</A>"), "NUL"),
            (bomb.to_owned() + &wrap("&b;"), "DOCTYPE"),
            ("<!DOCTYPE x SYSTEM \"file:///etc/passwd\">".to_owned() + &wrap(""), "DOCTYPE"),
            ("<?xml version='1.0' encoding='latin1'?>".to_owned() + &wrap(""), "expected UTF-8"),
            (wrap(&deep(64)), "deeper than 64"),
            (wrap(&deep(100_000)), "deeper than 64"),
            ("<DS_DRIVER_ACTION_DATA>".to_owned() + &"<IMAGE>".repeat(100_000), "deeper than 64"),
            (wrap("<IMAGE><ID>1</ID><ID>2</ID></IMAGE>"), "two different values for IMAGE/ID"),
            (wrap("<IMAGE><ID>1</ID><ID/></IMAGE>"), "two different values for IMAGE/ID"),
            (wrap("<IMAGE><ID>1</ID></IMAGE><IMAGE></IMAGE>"), "two different values for IMAGE"),
            (wrap("<IMAGE><PATH><X>1</X></PATH></IMAGE>"), "IMAGE/PATH in the driver message holds elements"),
        ];
        for (xml, want) in cases {
            let shown = &xml[..xml.len().min(200)];
            let error = DsDump::parse(xml.as_bytes()).expect_err(shown);
            let text = error.to_string();
            assert!(text.contains(want), "{shown}: {text}");
            assert_eq!(error.class(), Class::Usage);
            assert!(!text.contains('\n') && text.len() < 400, "{text}");
        }
        parse(&deep(63)).unwrap();
    }

    #[test]
    fn not_text_and_not_base64() {
        for bytes in [&b"<X>\xff</X>"[..], b"\xff\xfe<\0X\0", b"PEE+\xff", b"P", b"====", b"--help", b"PERT!"]
        {
            assert!(DsDump::parse(bytes).is_err(), "{bytes:?}");
        }
        let latin = STANDARD.encode(wrap("").into_bytes().iter().copied().chain([0xe4]).collect::<Vec<_>>());
        assert!(matches!(DsDump::parse(latin.as_bytes()), Err(OneError::Encoding { .. })));
        assert!(matches!(DsDump::parse(b"PA*="), Err(OneError::Base64 { at: 2 })));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let end = CP.trim_end().len();
        let encoded = STANDARD.encode(CP);
        for at in 0..end {
            assert!(DsDump::parse(&CP.as_bytes()[..at]).is_err(), "cut at {at}");
        }
        for at in 0..encoded.len() - 4 {
            assert!(DsDump::parse(&encoded.as_bytes()[..at]).is_err(), "base64 cut at {at}");
        }
    }

    #[test]
    fn the_message_comes_from_stdin_or_the_arguments() {
        struct Untouched;
        impl Read for Untouched {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                panic!("stdin is not to be read")
            }
        }
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let encoded = STANDARD.encode(CP);
        for (list, id) in
            [(vec!["7"], Some(7)), (vec!["-1"], Some(-1)), (vec![], None), (vec!["7", "x"], Some(7))]
        {
            let call = DsCall::from(&args(&list), encoded.as_bytes()).unwrap();
            assert_eq!((call.dump, call.id), (encoded.clone().into_bytes(), id), "{list:?}");
        }
        for (list, id) in
            [(vec![encoded.as_str(), "7"], Some(7)), (vec![&encoded], None), (vec![CP, "7"], Some(7))]
        {
            let call = DsCall::from(&args(&list), Untouched).unwrap();
            assert_eq!((call.id, DsDump::parse(&call.dump).is_ok()), (id, true));
        }
        let error = DsCall::from(&args(&[&encoded, "a\nb"]), Untouched).unwrap_err();
        assert_eq!(error.to_string(), "argument 2 is \"a\\nb\", expected an object id");
        for list in [vec!["1-"], vec!["99999999999999999999"], vec![""], vec!["+1"]] {
            let call = DsCall::from(&args(&list), Untouched).unwrap();
            assert!(DsDump::parse(&call.dump).is_err(), "{list:?}");
        }
        let nothing = DsCall::from(&args(&["7"]), std::io::empty()).unwrap();
        assert!(matches!(DsDump::parse(&nothing.dump), Err(OneError::Empty)));
    }

    #[test]
    fn size_is_limited_before_it_is_read() {
        let endless = std::io::repeat(b'P');
        let error = DsCall::from(&["7".into()], endless).unwrap_err();
        assert!(matches!(error, OneError::TooLarge { .. }), "{error}");
        let huge = wrap(&" ".repeat(33 << 20));
        assert!(matches!(DsDump::parse(huge.as_bytes()), Err(OneError::TooLarge { .. })));
        assert!(matches!(DsDump::parse(STANDARD.encode(&huge).as_bytes()), Err(OneError::TooLarge { .. })));
        let largest = wrap(&" ".repeat(usize::try_from(MAX_DUMP).unwrap() - wrap("").len()));
        let encoded = STANDARD.encode(&largest);
        assert!((encoded.len() as u64) < MAX_ENCODED);
        DsDump::parse(encoded.as_bytes()).unwrap();
    }

    #[test]
    fn a_crowded_datastore_costs_time_only() {
        use std::fmt::Write as _;
        let mut ids = String::new();
        for id in 0..700_000 {
            write!(ids, "<ID>{id}</ID>").unwrap();
        }
        let encoded = STANDARD.encode(CP.replace("<IMAGES></IMAGES>", &format!("<IMAGES>{ids}</IMAGES>")));
        assert!(encoded.len() > 13_000_000, "{}", encoded.len());
        let start = std::time::Instant::now();
        let dump = DsDump::parse(encoded.as_bytes()).unwrap();
        // Shown with --nocapture; a debug build says little about it.
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{} MB of base64 parsed in {:?}\n", encoded.len() / 1_000_000, start.elapsed()),
        );
        assert_eq!(dump.get("DATASTORE/ID"), Some("100"));
        assert!(dump.values.len() < 40);
    }

    #[test]
    fn the_used_names_are_sorted() {
        for (_, names) in USED {
            assert!(names.is_sorted());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = DsDump::parse(&bytes);
            let _ = DsDump::parse(STANDARD.encode(&bytes).as_bytes());
        }

        #[test]
        fn no_markup_panics(inner in "(<|>|/|&|;|#|x|!|\\[|\\]|CDATA|--|\\?|\"|'|=| |IMAGE|ID|DATASTORE|TEMPLATE|ä){0,60}") {
            let _ = parse(&inner);
            let _ = DsDump::parse(inner.as_bytes());
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0..CP.len(), byte in any::<u8>()) {
            let mut bytes = CP.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(dump) = DsDump::parse(&bytes) {
                let _ = dump.request(std::path::Path::new("/ds"));
            }
        }
    }
}
