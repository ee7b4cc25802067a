//! The disks of a machine, as libvirt describes it.

use crate::sys::Class;
use crate::verb::refuse;
use anyhow::Result;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use std::path::PathBuf;

/// More files than anybody's snapshots.
const FILES: usize = 1000;
const DEPTH: usize = 3000;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drive {
    pub target: String,
    /// What it writes to, then what that builds on, down to the root.
    pub files: Vec<Node>,
    /// What it is being copied into while it is written to.
    pub mirror: Option<PathBuf>,
}

/// A file or a device that the machine has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// By which the machine found it once. A link in it may lead elsewhere now.
    pub path: PathBuf,
    /// What block jobs call it, after the target.
    pub index: Option<u32>,
}

/// Reads a description. `None`: the machine does not run, which is when it has no number.
pub(super) fn drives(xml: &str) -> Result<Option<Vec<Drive>>> {
    let wrong = |why: String| {
        let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
        refuse(Class::Remote, format!("libvirt describes the machine in a way nobody understands: {why}"))
    };
    let mut reader = Reader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let (mut open, mut out): (Vec<String>, Vec<Drive>) = (Vec::new(), Vec::new());
    let mut drive: Option<Drive> = None;
    // The index stands in the file's source, or in the element around it.
    let mut around = None;
    let (mut seen, mut runs) = (false, false);
    loop {
        match reader.read_event().map_err(|e| wrong(e.to_string()))? {
            Event::Start(e) => {
                let name = e.name().as_ref().to_owned();
                if open.is_empty() && (seen || name != "domain") {
                    return Err(wrong(format!("its root is {name}")));
                }
                if open.len() == DEPTH {
                    return Err(wrong("it is too deep".to_owned()));
                }
                if open.is_empty() {
                    seen = true;
                    runs = text(&e, "id").map_err(wrong)?.is_some();
                }
                let place: Vec<&str> = open.iter().map(String::as_str).collect();
                match (place.as_slice(), name.as_str()) {
                    (["domain", "devices"], "disk") => drive = Some(Drive::default()),
                    (["domain", "devices", "disk"], "target") => {
                        if let (Some(d), Some(dev)) = (&mut drive, text(&e, "dev").map_err(wrong)?) {
                            d.target = dev;
                        }
                    }
                    (["domain", "devices", "disk", "mirror"], "source") => {
                        if let (Some(d), Some(path)) = (&mut drive, text(&e, "file").map_err(wrong)?) {
                            d.mirror = Some(path.into());
                        }
                    }
                    (["domain", "devices", "disk", below @ ..], _)
                        if below.iter().all(|b| *b == "backingStore") =>
                    {
                        let index = text(&e, "index").map_err(wrong)?.and_then(|i| i.parse().ok());
                        if name == "backingStore" {
                            around = index;
                        }
                        if let Some(d) =
                            drive.as_mut().filter(|d| name == "source" && d.files.len() == below.len())
                            && let Some(path) =
                                ["file", "dev"].into_iter().find_map(|n| text(&e, n).transpose())
                        {
                            if d.files.len() == FILES {
                                return Err(wrong("a disk has too many files".to_owned()));
                            }
                            let index = index.or(around.filter(|_| !below.is_empty()));
                            d.files.push(Node { path: path.map_err(wrong)?.into(), index });
                        }
                    }
                    _ => {}
                }
                open.push(name);
            }
            Event::End(_) => {
                if open.len() == 3 && open[2] == "disk" {
                    out.extend(drive.take().filter(|d| !d.target.is_empty()));
                }
                open.pop();
            }
            Event::DocType(_) => return Err(wrong("it has a DOCTYPE".to_owned())),
            Event::Eof if seen && open.is_empty() => return Ok(runs.then_some(out)),
            Event::Eof => return Err(wrong("it ends too early".to_owned())),
            _ => {}
        }
    }
}

fn text(e: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    for a in e.attributes() {
        let a = a.map_err(|e| e.to_string())?;
        if a.key.as_ref() == name {
            let value = quick_xml::escape::unescape(&a.value).map_err(|e| e.to_string())?;
            return Ok(Some(value.into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const XML: &str = "<domain type='kvm' id='3'><name>one-7</name><devices>
      <disk type='file'><driver name='qemu'/><source file='/d/7/disk.0.snap/2' index='6'/>
        <backingStore type='file' index='3'><format type='qcow2'/><source file='/d/7/disk.0'/>
          <backingStore type='file'><source file='/d/a&amp;b' index='2'/><backingStore/></backingStore>
        </backingStore>
        <mirror type='file'><source file='/d/other' index='9'/></mirror><target dev='vda' bus='virtio'/></disk>
      <disk type='file' device='cdrom'><target dev='hda'/></disk>
      <disk type='block'><source dev='/dev/x'/><target dev='vdb'/></disk>
      <disk type='file'><source file='/d/7/disk.1'/></disk>
      </devices><metadata><disk><source file='/x'/><target dev='vdc'/></disk></metadata></domain>";

    #[test]
    fn the_files_of_each_disk_from_the_top_down() {
        let node = |path: &str, index| Node { path: path.into(), index };
        let vda =
            vec![node("/d/7/disk.0.snap/2", Some(6)), node("/d/7/disk.0", Some(3)), node("/d/a&b", Some(2))];
        let bare = |target: &str| Drive { target: target.into(), ..Drive::default() };
        let first = Drive { target: "vda".into(), files: vda, mirror: Some("/d/other".into()) };
        let device = Drive { files: vec![node("/dev/x", None)], ..bare("vdb") };
        assert_eq!(drives(XML).unwrap().unwrap(), [first, bare("hda"), device]);
        assert_eq!(drives(&XML.replace(" id='3'", "")).unwrap(), None);
    }

    #[test]
    fn what_is_no_description_is_one_line() {
        let deep = "<domain>".to_owned() + &"<a>".repeat(4000);
        for bad in [
            "",
            "error",
            "<domain>",
            "<other/>",
            "<domain/><domain/>",
            "<domain></x></domain>",
            "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>",
            "<domain><devices><disk><source file='&x;'/></disk></devices></domain>",
            "<domain><devices><disk><source file=/></disk></devices></domain>",
            &deep,
        ] {
            let e = drives(bad).unwrap_err().to_string();
            assert!(e.starts_with("libvirt describes") && !e.contains('\n'), "{bad}: {e}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(cut in 0..XML.len(), with in "\\PC{0,20}", skip in 0..30usize) {
            let rest = (cut + skip).min(XML.len());
            let _ = drives(&format!("{}{with}{}", &XML[..cut], &XML[rest..]));
            let _ = drives(&with);
        }
    }
}
