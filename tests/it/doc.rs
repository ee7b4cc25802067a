//! Dumps: `DS_DRIVER_ACTION_DATA` documents made for a test, and the few words of recorded ones that
//! the suite reads. The recorded ones are oned's own, so plain text search is enough for them.

use crate::bed::Bed;

/// A dump being put together.
#[derive(Clone)]
pub struct Doc {
    image: Vec<(&'static str, String)>,
    image_template: Vec<(&'static str, String)>,
    store: Vec<(&'static str, String)>,
    store_template: Vec<(&'static str, String)>,
}

impl Doc {
    /// For image `image` of datastore 100.
    pub fn new(bed: &Bed, image: u32) -> Doc {
        Doc {
            image: vec![("ID", image.to_string()), ("REGTIME", "1795168000".into()), ("TYPE", "0".into())],
            image_template: vec![],
            store: vec![
                ("ID", "100".into()),
                ("DS_MAD", "fs".into()),
                ("TM_MAD", "shared".into()),
                ("BASE_PATH", bed.base_path(100)),
                ("TYPE", "0".into()),
                ("DISK_TYPE", "0".into()),
            ],
            store_template: vec![("SAFE_DIRS", bed.images().display().to_string())],
        }
    }
    pub fn image(mut self, key: &'static str, value: impl ToString) -> Doc {
        set(&mut self.image, key, value.to_string());
        self
    }
    pub fn image_template(mut self, key: &'static str, value: impl ToString) -> Doc {
        set(&mut self.image_template, key, value.to_string());
        self
    }
    pub fn store(mut self, key: &'static str, value: impl ToString) -> Doc {
        set(&mut self.store, key, value.to_string());
        self
    }
    pub fn store_template(mut self, key: &'static str, value: impl ToString) -> Doc {
        set(&mut self.store_template, key, value.to_string());
        self
    }
    /// `SOURCE` as an earlier answer gave it.
    pub fn source(self, bed: &Bed, name: &str) -> Doc {
        let path = format!("{}/{name}", bed.base_path(100));
        self.image("SOURCE", path)
    }

    pub fn xml(&self) -> String {
        let all = |fields: &[(&str, String)]| -> String {
            fields.iter().map(|(k, v)| format!("<{k}><![CDATA[{v}]]></{k}>")).collect()
        };
        format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE>{}<TEMPLATE>{}</TEMPLATE></IMAGE><DATASTORE>{}<TEMPLATE>{}</TEMPLATE>\
             </DATASTORE></DS_DRIVER_ACTION_DATA>",
            all(&self.image),
            all(&self.image_template),
            all(&self.store),
            all(&self.store_template),
        )
    }
}

fn set(fields: &mut Vec<(&'static str, String)>, key: &'static str, value: String) {
    fields.retain(|(k, _)| *k != key);
    fields.push((key, value));
}

/// The name stock gives an image: MD5 of `<epoch seconds>:<ID>` and a newline.
pub fn image_name(regtime: u64, image: u32) -> String {
    use md5::Digest as _;
    let digest = md5::Md5::digest(format!("{regtime}:{image}\n"));
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Text of the first `<field>` directly inside the first `<section>` of a recorded dump: fields of an
/// element stand before those of its TEMPLATE there.
pub fn field(dump: &str, section: &str, field: &str) -> Option<String> {
    let inside = between(dump, &format!("<{section}><"), &format!("</{section}>"))
        .or_else(|| between(dump, &format!("<{section}>"), &format!("</{section}>")))?;
    let text = between(inside, &format!("{field}>"), &format!("</{field}>"))?;
    let text = text.strip_prefix("<![CDATA[").and_then(|t| t.strip_suffix("]]>")).unwrap_or(text);
    (!text.is_empty()).then(|| text.to_owned())
}

/// Text of `<field>` in the TEMPLATE of `section`.
pub fn template(dump: &str, section: &str, name: &str) -> Option<String> {
    let inside = between(dump, &format!("<{section}><"), &format!("</{section}>"))?;
    let at = inside.rfind("<TEMPLATE>")?;
    field(&inside[at..], "TEMPLATE", name)
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let start = text.find(from)? + from.len();
    // The opening may have swallowed the next element's `<`.
    let start = if from.ends_with("><") { start - 1 } else { start };
    let end = text[start..].find(to)? + start;
    Some(&text[start..end])
}

#[test]
fn recorded_dumps_are_read() {
    let dump = "<D><IMAGE><ID>7</ID><SOURCE><![CDATA[]]></SOURCE><DATASTORE>lc1-img</DATASTORE><TEMPLATE><DRIVER>\
                <![CDATA[raw]]></DRIVER></TEMPLATE></IMAGE><DATASTORE><ID>100</ID><TEMPLATE><DRIVER><![CDATA[qcow2]]>\
                </DRIVER></TEMPLATE></DATASTORE></D>";
    assert_eq!(field(dump, "IMAGE", "ID").as_deref(), Some("7"));
    assert_eq!(field(dump, "IMAGE", "SOURCE"), None);
    assert_eq!(field(dump, "DATASTORE", "ID").as_deref(), Some("100"));
    assert_eq!(template(dump, "DATASTORE", "DRIVER").as_deref(), Some("qcow2"));
    assert_eq!(template(dump, "IMAGE", "DRIVER").as_deref(), Some("raw"));
    // The name stock gave the first recorded image, by printf '1795167999:0\n' | md5sum
    assert_eq!(image_name(1_795_167_999, 0), "ad4b151c1c9cfb44ee81508564f3d99e");
}
