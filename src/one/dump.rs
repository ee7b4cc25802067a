//! The message oned sends with a datastore verb: where it comes from, and the few values of it that
//! anybody reads. One pass, nothing else kept: a datastore with 100,000 images costs no memory.

use super::OneError;
use super::xml::{self, Values, Visit, Want};
use crate::sys::Bytes;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;

/// Largest message accepted, as XML.
pub const MAX_DUMP: u64 = 32 * Bytes::MIB;
/// The same as base64, with room for line ends.
const MAX_ENCODED: u64 = MAX_DUMP / 3 * 4 + MAX_DUMP / 16;
/// What messages call it.
pub(super) const MESSAGE: &str = "the driver message";
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
            "CACHE_ENABLE",
            "CONVERT",
            "DISK_TYPE",
            "DRIVER",
            "LIMIT_TRANSFER_BW",
            "LVM_THIN_ENABLE",
            "NFS_AUTO_ENABLE",
            "NFS_AUTO_HOST",
            "NFS_AUTO_OPTS",
            "NFS_AUTO_PATH",
            "NO_DECOMPRESS",
            "REPLICA_HOST",
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
    pub fn from(args: &[OsString], stdin: impl Read) -> Result<DsCall, OneError> {
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
        let dump = match dump_arg {
            Some(arg) => arg.as_encoded_bytes().to_vec(),
            None => from_stdin(stdin, MESSAGE)?,
        };
        if dump.len() as u64 > MAX_ENCODED {
            return Err(OneError::TooLarge { doc: MESSAGE, limit: Bytes(MAX_DUMP) });
        }
        Ok(DsCall { dump, id })
    }
}

/// All of stdin, and never more than the largest legal document.
pub(super) fn from_stdin(mut stdin: impl Read, doc: &'static str) -> Result<Vec<u8>, OneError> {
    let mut bytes = Vec::new();
    let read = stdin.by_ref().take(MAX_ENCODED + 1).read_to_end(&mut bytes);
    read.map_err(|source| OneError::Stdin { source })?;
    if bytes.len() as u64 > MAX_ENCODED {
        return Err(OneError::TooLarge { doc, limit: Bytes(MAX_DUMP) });
    }
    Ok(bytes)
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
    pub(super) values: Values,
    has_image: bool,
    has_datastore: bool,
}

impl DsDump {
    /// Reads a message in base64 (line ends allowed) or plain XML. The whole of it must be
    /// well-formed; a value that comes twice must be the same both times.
    pub fn parse(bytes: &[u8]) -> Result<DsDump, OneError> {
        let mut dump = DsDump::new(MESSAGE);
        xml::read(MESSAGE, ROOT, bytes, &mut dump)?;
        Ok(dump)
    }

    /// Reads a document that is only an IMAGE or only a DATASTORE, as oned's API answers it; `root`
    /// is which.
    pub(super) fn object(doc: &'static str, root: &'static str, bytes: &[u8]) -> Result<DsDump, OneError> {
        let mut dump = DsDump::new(doc);
        (dump.has_image, dump.has_datastore) = (root == "IMAGE", root == "DATASTORE");
        xml::scan(doc, root, root, &xml::decode(doc, bytes, MAX_DUMP)?, &mut dump)?;
        Ok(dump)
    }

    fn new(doc: &'static str) -> DsDump {
        DsDump { values: Values::new(doc, ""), ..DsDump::default() }
    }

    /// Its values, for another host.
    pub fn values(&self) -> BTreeMap<String, String> {
        self.values.iter().map(|(path, value)| (path.clone(), value.clone())).collect()
    }

    /// The message with these values; others than those that verbs read are dropped.
    pub fn of(values: &BTreeMap<String, String>) -> Result<DsDump, OneError> {
        let mut dump = DsDump::new(MESSAGE);
        for (path, value) in values {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            if is_used(parent, name) {
                dump.values.put(path, value.clone())?;
                dump.has_image |= path.starts_with("IMAGE/");
                dump.has_datastore |= path.starts_with("DATASTORE/");
            }
        }
        Ok(dump)
    }

    /// The value at a path below the root; `None` when absent or empty.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.values.get(path)
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

impl Visit for DsDump {
    fn open(&mut self, parent: &str, name: &str) -> Result<Want, OneError> {
        if is_used(parent, name) {
            return Ok(Want::Value);
        }
        let path = xml::join(parent, name);
        if !USED.iter().any(|(section, _)| *section == path) {
            return Ok(Want::Nothing);
        }
        let seen = match path.as_str() {
            "IMAGE" => &mut self.has_image,
            "DATASTORE" => &mut self.has_datastore,
            _ => &mut false,
        };
        if std::mem::replace(seen, true) {
            return Err(self.values.ambiguous(&path));
        }
        Ok(Want::Inside)
    }

    fn value(&mut self, path: &str, text: String) -> Result<(), OneError> {
        self.values.put(path, text)
    }
}

/// The datastores of a pool document, each as a message of its own.
pub(super) fn pool(doc: &'static str, bytes: &[u8]) -> Result<Vec<DsDump>, OneError> {
    let mut pool = Pool { doc, dumps: Vec::new() };
    xml::read(doc, "DATASTORE_POOL", bytes, &mut pool)?;
    Ok(pool.dumps)
}

struct Pool {
    doc: &'static str,
    dumps: Vec<DsDump>,
}

impl Visit for Pool {
    fn open(&mut self, parent: &str, name: &str) -> Result<Want, OneError> {
        if parent.is_empty() && name == "DATASTORE" {
            self.dumps.push(DsDump::new(self.doc));
        }
        match self.dumps.last_mut().filter(|_| !parent.is_empty() || name == "DATASTORE") {
            Some(dump) => dump.open(parent, name),
            None => Ok(Want::Nothing),
        }
    }

    fn value(&mut self, path: &str, text: String) -> Result<(), OneError> {
        self.dumps.last_mut().map_or(Ok(()), |dump| dump.value(path, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;
    use base64::Engine as _;
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
            assert!(!dump.values.iter().any(|(k, _)| k == "IMAGE/UNAME"));
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
        assert!(matches!(DsDump::parse(b"PA*="), Err(OneError::Base64 { at: 2, .. })));
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
        assert!(matches!(DsDump::parse(&nothing.dump), Err(OneError::Empty { .. })));
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
        assert!(dump.values.iter().count() < 40);
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
