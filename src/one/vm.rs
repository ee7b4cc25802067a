//! The VM document: what transfer verbs read of it, and nothing else. Sections may come in any order,
//! be missing, or hold empty numbers.

use super::OneError;
use super::xml::{self, Values, Visit, Want};
use crate::sys::Bytes;

const DOC: &str = "the VM document";

/// Values of `STATE` that verbs ask for.
pub mod state {
    pub const ACTIVE: u32 = 3;
    pub const STOPPED: u32 = 4;
    pub const SUSPENDED: u32 = 5;
    pub const POWEROFF: u32 = 8;
    pub const UNDEPLOYED: u32 = 9;
}

/// Values of `LCM_STATE` that change what verbs do.
pub mod lcm {
    pub const PROLOG_RESUME: u32 = 9;
    pub const EPILOG_STOP: u32 = 10;
    pub const UNKNOWN: u32 = 16;
    pub const HOTPLUG_SAVEAS: u32 = 26;
    pub const HOTPLUG_SAVEAS_POWEROFF: u32 = 27;
    pub const HOTPLUG_SAVEAS_SUSPENDED: u32 = 28;
    pub const EPILOG_UNDEPLOY: u32 = 30;
    pub const PROLOG_UNDEPLOY: u32 = 31;
    pub const EPILOG_STOP_FAILURE: u32 = 41;
    pub const EPILOG_UNDEPLOY_FAILURE: u32 = 42;
    pub const PROLOG_RESUME_FAILURE: u32 = 49;
    pub const PROLOG_UNDEPLOY_FAILURE: u32 = 50;
    pub const DISK_SNAPSHOT: u32 = 57;
    pub const DISK_SNAPSHOT_DELETE: u32 = 59;
    pub const PROLOG_MIGRATE_UNKNOWN: u32 = 60;
    pub const PROLOG_MIGRATE_UNKNOWN_FAILURE: u32 = 61;
    pub const DISK_RESIZE: u32 = 62;
    pub const DISK_RESIZE_POWEROFF: u32 = 63;
    pub const DISK_RESIZE_UNDEPLOYED: u32 = 64;
    pub const HOTPLUG_SAVEAS_UNDEPLOYED: u32 = 67;
    pub const HOTPLUG_SAVEAS_STOPPED: u32 = 68;
    pub const BACKUP: u32 = 69;
    pub const BACKUP_POWEROFF: u32 = 70;
}

/// The values read, by section. Everything else is checked to be well-formed and dropped.
const USED: &[(&str, &[&str])] = &[
    ("", &["DEPLOY_ID", "ID", "LCM_STATE", "NAME", "STATE"]),
    ("TEMPLATE", &["TM_MAD_SYSTEM"]),
    ("TEMPLATE/CONTEXT", &["DISK_ID"]),
    (
        DISK,
        &[
            "CLONE",
            "DATASTORE_ID",
            "DISK_ID",
            "DISK_TYPE",
            "DRIVER",
            "FORMAT",
            "FS",
            "IMAGE_ID",
            "LUKS_SECRET",
            "LVM_THIN_ENABLE",
            "ORIGINAL_SIZE",
            "PERSISTENT",
            "PERSISTENT_SNAPSHOTS",
            "QCOW2_STANDALONE",
            "READONLY",
            "RECOVERY_SNAPSHOT_FREQ",
            "SAVE",
            "SIZE",
            "SOURCE",
            "SPARSE",
            "TARGET",
            "TM_MAD",
            "TM_MAD_SYSTEM",
            "TYPE",
        ],
    ),
    ("HISTORY_RECORDS", &[]),
    (HISTORY, &["ACTION", "DS_ID", "HOSTNAME", "SEQ", "TM_MAD", "VM_MAD"]),
    (SNAPSHOTS, &["DISK_ID"]),
    (SNAPSHOT, &["ACTIVE", "ID"]),
];
const DISK: &str = "TEMPLATE/DISK";
const HISTORY: &str = "HISTORY_RECORDS/HISTORY";
const SNAPSHOTS: &str = "SNAPSHOTS";
const SNAPSHOT: &str = "SNAPSHOTS/SNAPSHOT";

#[derive(Clone, Debug)]
pub struct Vm {
    pub id: u32,
    pub name: String,
    /// See `state`.
    pub state: Option<u32>,
    /// See `lcm`.
    pub lcm_state: Option<u32>,
    /// The hypervisor's name of it: `one-7`.
    pub deploy_id: Option<String>,
    /// The transfer driver of its system datastore, as the core noted it at the VM.
    pub tm_mad_system: Option<String>,
    /// The disk number of its context ISO, which is no DISK.
    pub context_disk: Option<u32>,
    /// As in the document; no number comes twice.
    pub disks: Vec<Disk>,
    /// Where it is, or was last.
    pub history: Option<History>,
    /// The record before.
    pub previous: Option<History>,
    /// By disk.
    pub snapshots: Vec<DiskSnapshots>,
}

#[expect(clippy::struct_excessive_bools, reason = "OpenNebula's own words for a disk")]
#[derive(Clone, Debug)]
pub struct Disk {
    pub id: u32,
    /// The size wanted.
    pub size: Option<Bytes>,
    /// The size of the image; a clone grows where `size` is larger.
    pub original_size: Option<Bytes>,
    pub format: Option<String>,
    pub driver: Option<String>,
    /// `Some(false)` is a persistent image, `Some(true)` a copy of one, `None` a volatile disk.
    pub clone: Option<bool>,
    pub save: bool,
    pub persistent: bool,
    pub readonly: bool,
    /// Whether snapshots of a persistent disk become the image's.
    pub persistent_snapshots: bool,
    /// The image as stored.
    pub source: Option<String>,
    /// `vda`.
    pub target: Option<String>,
    /// `FILE`, `CDROM`, `fs`, `swap`, ... as written.
    pub kind: Option<String>,
    pub disk_type: Option<String>,
    pub tm_mad: Option<String>,
    /// The suffix of the verbs for it: `ssh`.
    pub tm_mad_system: Option<String>,
    pub datastore_id: Option<u32>,
    pub image_id: Option<u32>,
    /// File system of a volatile disk.
    pub fs: Option<String>,
    /// `false` asks for full allocation.
    pub sparse: bool,
    pub qcow2_standalone: bool,
    /// `false` asks for disks on volume groups that lie in no pool.
    pub lvm_thin_enable: bool,
    /// Seconds.
    pub recovery_snapshot_freq: Option<u64>,
    /// The id of a secret at the hypervisor, not the secret.
    pub luks_secret: Option<String>,
}

/// One stay of the VM on a host.
#[derive(Clone, Debug)]
pub struct History {
    pub hostname: Option<String>,
    /// System datastore.
    pub ds_id: Option<u32>,
    pub vm_mad: Option<String>,
    pub tm_mad: Option<String>,
    pub action: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSnapshots {
    pub disk: u32,
    pub snapshots: Vec<Snapshot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: u32,
    pub active: bool,
}

impl Vm {
    /// Reads a VM document, as base64 or plain XML of at most 32 MiB.
    pub fn parse(xml: &[u8]) -> Result<Vm, OneError> {
        let mut raw = Raw::new();
        xml::read(DOC, "VM", xml, &mut raw)?;
        raw.vm()
    }

    pub fn disk(&self, id: u32) -> Option<&Disk> {
        self.disks.iter().find(|d| d.id == id)
    }

    /// The disk, for verbs that cannot do without.
    pub fn need_disk(&self, id: u32) -> Result<&Disk, OneError> {
        let path = || format!("TEMPLATE/DISK[DISK_ID={id}]");
        self.disk(id).ok_or_else(|| OneError::Missing { doc: DOC, path: path() })
    }

    /// The snapshots of a disk, none when there are none.
    pub fn snapshots_of(&self, disk: u32) -> &[Snapshot] {
        self.snapshots.iter().find(|s| s.disk == disk).map_or(&[], |s| &s.snapshots)
    }

    pub fn in_lcm(&self, states: &[u32]) -> bool {
        self.lcm_state.is_some_and(|s| states.contains(&s))
    }
}

impl Disk {
    /// Whether the VM works on the image itself and not on a copy.
    pub fn is_persistent(&self) -> bool {
        self.clone == Some(false)
    }

    pub fn is_cdrom(&self) -> bool {
        self.kind.as_deref().is_some_and(|k| k.eq_ignore_ascii_case("CDROM"))
    }

    /// Made by mkimage or mkswap, of no image.
    pub fn is_volatile(&self) -> bool {
        self.kind.as_deref().is_some_and(|k| k.eq_ignore_ascii_case("fs") || k.eq_ignore_ascii_case("swap"))
    }
}

/// The document's values by section, in its order.
struct Raw {
    vm: Values,
    template: Values,
    context: Values,
    disks: Vec<Values>,
    /// The last two.
    history: [Option<Values>; 2],
    snapshots: Vec<(Values, Vec<Values>)>,
}

impl Raw {
    fn new() -> Raw {
        let values = |section| Values::new(DOC, section);
        Raw {
            vm: values(""),
            template: values("TEMPLATE"),
            context: values("TEMPLATE/CONTEXT"),
            disks: Vec::new(),
            history: [None, None],
            snapshots: Vec::new(),
        }
    }

    fn section(&mut self, path: &str) -> Option<&mut Values> {
        match path {
            "" => Some(&mut self.vm),
            "TEMPLATE" => Some(&mut self.template),
            "TEMPLATE/CONTEXT" => Some(&mut self.context),
            DISK => self.disks.last_mut(),
            HISTORY => self.history[1].as_mut(),
            SNAPSHOTS => self.snapshots.last_mut().map(|(values, _)| values),
            SNAPSHOT => self.snapshots.last_mut().and_then(|(_, list)| list.last_mut()),
            _ => None,
        }
    }

    fn vm(&self) -> Result<Vm, OneError> {
        let mut disks: Vec<Disk> = Vec::with_capacity(self.disks.len());
        for values in &self.disks {
            let disk = disk(values)?;
            if disks.iter().any(|d| d.id == disk.id) {
                let path = format!("TEMPLATE/DISK[DISK_ID={}]", disk.id);
                return Err(OneError::Ambiguous { doc: DOC, path });
            }
            disks.push(disk);
        }
        let mut snapshots: Vec<DiskSnapshots> = Vec::new();
        for (values, list) in &self.snapshots {
            let disk = values.need("DISK_ID")?;
            let list = list.iter().map(|s| Ok(Snapshot { id: s.need("ID")?, active: s.flag("ACTIVE") }));
            let list = list.collect::<Result<Vec<_>, OneError>>()?;
            match snapshots.iter_mut().find(|s| s.disk == disk) {
                Some(had) => had.snapshots.extend(list),
                None => snapshots.push(DiskSnapshots { disk, snapshots: list }),
            }
        }
        let [previous, history] = &self.history;
        Ok(Vm {
            id: self.vm.need("ID")?,
            name: self.vm.text("NAME").unwrap_or_default(),
            state: self.vm.number("STATE")?,
            lcm_state: self.vm.number("LCM_STATE")?,
            deploy_id: self.vm.text("DEPLOY_ID"),
            tm_mad_system: self.template.text("TM_MAD_SYSTEM"),
            context_disk: self.context.number("DISK_ID")?,
            disks,
            history: history.as_ref().map(record).transpose()?,
            previous: previous.as_ref().map(record).transpose()?,
            snapshots,
        })
    }
}

impl Visit for Raw {
    fn open(&mut self, parent: &str, name: &str) -> Result<Want, OneError> {
        let used =
            |(section, names): &(&str, &[&str])| *section == parent && names.binary_search(&name).is_ok();
        if USED.iter().any(used) {
            return Ok(Want::Value);
        }
        let path = xml::join(parent, name);
        let Some((section, _)) = USED.iter().find(|(section, _)| *section == path) else {
            return Ok(Want::Nothing);
        };
        let values = || Values::new(DOC, section);
        match *section {
            DISK => self.disks.push(values()),
            HISTORY => self.history = [self.history[1].take(), Some(values())],
            SNAPSHOTS => self.snapshots.push((values(), Vec::new())),
            SNAPSHOT => {
                if let Some((_, list)) = self.snapshots.last_mut() {
                    list.push(values());
                }
            }
            _ => {}
        }
        Ok(Want::Inside)
    }

    fn value(&mut self, path: &str, text: String) -> Result<(), OneError> {
        let (section, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.section(section).map_or(Ok(()), |values| values.put(name, text))
    }
}

fn disk(v: &Values) -> Result<Disk, OneError> {
    Ok(Disk {
        id: v.need("DISK_ID")?,
        size: v.mib("SIZE")?,
        original_size: v.mib("ORIGINAL_SIZE")?,
        format: v.text("FORMAT"),
        driver: v.text("DRIVER"),
        clone: v.get("CLONE").map(super::is_yes),
        save: v.flag("SAVE"),
        persistent: v.flag("PERSISTENT"),
        readonly: v.flag("READONLY"),
        persistent_snapshots: v.unless_no("PERSISTENT_SNAPSHOTS"),
        source: v.text("SOURCE"),
        target: v.text("TARGET"),
        kind: v.text("TYPE"),
        disk_type: v.text("DISK_TYPE"),
        tm_mad: v.text("TM_MAD"),
        tm_mad_system: v.text("TM_MAD_SYSTEM"),
        datastore_id: v.number("DATASTORE_ID")?,
        image_id: v.number("IMAGE_ID")?,
        fs: v.text("FS"),
        sparse: v.unless_no("SPARSE"),
        qcow2_standalone: v.flag("QCOW2_STANDALONE"),
        lvm_thin_enable: v.unless_no("LVM_THIN_ENABLE"),
        recovery_snapshot_freq: v.number("RECOVERY_SNAPSHOT_FREQ")?,
        luks_secret: v.text("LUKS_SECRET"),
    })
}

fn record(v: &Values) -> Result<History, OneError> {
    Ok(History {
        hostname: v.text("HOSTNAME"),
        ds_id: v.number("DS_ID")?,
        vm_mad: v.text("VM_MAD"),
        tm_mad: v.text("TM_MAD"),
        action: v.number("ACTION")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;
    use proptest::prelude::*;

    const RECORDED: &str = include_str!("../../tests/fixtures/recorded/shared-raw/documents/doc-0048.xml");

    fn parse(inner: &str) -> Result<Vm, OneError> {
        Vm::parse(format!("<VM><ID>7</ID>{inner}</VM>").as_bytes())
    }

    #[test]
    fn a_recorded_vm() {
        let vm = Vm::parse(RECORDED.as_bytes()).unwrap();
        assert_eq!((vm.id, vm.name.as_str(), vm.deploy_id.as_deref()), (0, "lc1-vm", Some("one-0")));
        assert_eq!(vm.tm_mad_system.as_deref(), Some("shared"));
        assert_eq!((vm.state, vm.lcm_state, vm.context_disk), (Some(state::ACTIVE), Some(53), Some(6)));
        assert!(vm.in_lcm(&[52, 53]) && !vm.in_lcm(&[lcm::DISK_RESIZE]));
        assert_eq!(vm.disks.iter().map(|d| d.id).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        let (os, pers) = (vm.disk(0).unwrap(), vm.disk(1).unwrap());
        assert_eq!((os.clone, os.is_persistent(), os.save, os.readonly), (Some(true), false, false, false));
        assert!(pers.is_persistent() && pers.save && pers.persistent && pers.persistent_snapshots);
        assert_eq!(
            (pers.image_id, pers.datastore_id, pers.target.as_deref()),
            (Some(1), Some(100), Some("vdb"))
        );
        let grown = vm.disk(4).unwrap();
        assert_eq!((grown.size, grown.original_size), (Bytes::mib(48), Bytes::mib(24)));
        let volatile = vm.disk(2).unwrap();
        assert_eq!(
            (volatile.clone, volatile.is_volatile(), volatile.fs.as_deref()),
            (None, true, Some("ext4"))
        );
        let snapshot = |id, active| Snapshot { id, active };
        assert_eq!(vm.snapshots_of(0), [snapshot(0, true), snapshot(1, false)]);
        assert_eq!(vm.snapshots_of(4), [snapshot(0, true)]);
        assert_eq!(vm.snapshots_of(1), []);
        let history = vm.history.as_ref().unwrap();
        assert_eq!((history.hostname.as_deref(), history.ds_id), (Some("localhost"), Some(101)));
        assert_eq!((history.vm_mad.as_deref(), history.tm_mad.as_deref()), (Some("kvm"), Some("shared")));
        assert!(vm.previous.is_some());
    }

    #[test]
    fn order_gaps_and_empty_numbers() {
        let vm = parse(
            "<NAME>größe 数</NAME><SNAPSHOTS><SNAPSHOT><ID>12</ID></SNAPSHOT><DISK_ID>5</DISK_ID></SNAPSHOTS>\
             <TEMPLATE><DISK><DISK_ID>1</DISK_ID><SIZE></SIZE><IMAGE_ID/></DISK><NIC><DISK_ID>9</DISK_ID></NIC>\
             <DISK><SOURCE>/x/ä b</SOURCE><DISK_ID> 5 </DISK_ID><CLONE>NO</CLONE><SPARSE>no</SPARSE></DISK>\
             <NIC/><DISK><DISK_ID>0</DISK_ID><TYPE>CDROM</TYPE></DISK><SNAPSHOT><ID>4</ID></SNAPSHOT></TEMPLATE>\
             <USER_TEMPLATE><ID>8</ID><DISK><DISK_ID>1</DISK_ID></DISK></USER_TEMPLATE><LCM_STATE/>",
        )
        .unwrap();
        assert_eq!((vm.name.as_str(), vm.lcm_state, vm.state), ("größe 数", None, None));
        assert_eq!(vm.disks.iter().map(|d| d.id).collect::<Vec<_>>(), [1, 5, 0]);
        assert_eq!((vm.disks[0].size, vm.disks[0].image_id, vm.disks[0].sparse), (None, None, true));
        assert!(vm.disks[1].is_persistent() && !vm.disks[1].sparse && vm.disks[2].is_cdrom());
        assert_eq!(vm.disks[1].source.as_deref(), Some("/x/ä b"));
        assert_eq!(
            vm.snapshots,
            [DiskSnapshots { disk: 5, snapshots: vec![Snapshot { id: 12, active: false }] }]
        );
        assert!(vm.history.is_none() && vm.previous.is_none() && vm.context_disk.is_none());
        assert!(vm.need_disk(2).unwrap_err().to_string().contains("TEMPLATE/DISK[DISK_ID=2]"));
        let bare = parse("").unwrap();
        assert!(bare.disks.is_empty() && bare.name.is_empty() && bare.snapshots_of(0).is_empty());
    }

    #[test]
    fn of_many_records_the_last_two_count() {
        let records: String = (0..5000)
            .map(|n| format!("<HISTORY><SEQ>{n}</SEQ><HOSTNAME>h{n}</HOSTNAME><DS_ID>{n}</DS_ID></HISTORY>"))
            .collect();
        let vm = parse(&format!("<HISTORY_RECORDS>{records}</HISTORY_RECORDS>")).unwrap();
        assert_eq!((vm.history.unwrap().ds_id, vm.previous.unwrap().ds_id), (Some(4999), Some(4998)));
        let vm = parse("<HISTORY_RECORDS><HISTORY/></HISTORY_RECORDS>").unwrap();
        assert!(vm.history.unwrap().hostname.is_none() && vm.previous.is_none());
    }

    #[test]
    fn bad_documents_are_refused_in_one_line() {
        let disk = |s: &str| format!("<TEMPLATE><DISK>{s}</DISK></TEMPLATE>");
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\">]><VM><ID>&a;</ID></VM>";
        for (xml, want) in [
            (format!("<VM>{}</VM>", ""), "the VM document has no ID"),
            ("<IMAGE><ID>1</ID></IMAGE>".into(), "expected VM"),
            (String::new(), "the VM document is empty"),
            (bomb.into(), "DOCTYPE"),
            ("<VM><ID>1</ID>".into(), "ends inside an element"),
            ("<VM><ID>-1</ID></VM>".into(), "ID in the VM document is \"-1\", expected a number"),
            (format!("<VM><ID>1</ID>{}</VM>", "<a>".repeat(70)), "deeper than 64"),
            (format!("<VM><ID>1</ID>{}</VM>", disk("")), "no TEMPLATE/DISK/DISK_ID"),
            (
                format!("<VM><ID>1</ID>{}</VM>", disk("<DISK_ID>0</DISK_ID><SIZE>1 x</SIZE>")),
                "TEMPLATE/DISK/SIZE",
            ),
            (
                format!(
                    "<VM><ID>1</ID>{}</VM>",
                    disk("<DISK_ID>0</DISK_ID><SIZE>18446744073709551615</SIZE>")
                ),
                "a size in MiB",
            ),
            (format!("<VM><ID>1</ID>{0}{0}</VM>", disk("<DISK_ID>0</DISK_ID>")), "TEMPLATE/DISK[DISK_ID=0]"),
            (
                format!("<VM><ID>1</ID>{}</VM>", disk("<DISK_ID>0</DISK_ID><SOURCE><X/></SOURCE>")),
                "holds elements",
            ),
            (
                format!(
                    "<VM><ID>1</ID>{}</VM>",
                    disk("<DISK_ID>0</DISK_ID><SOURCE>a</SOURCE><SOURCE>b</SOURCE>")
                ),
                "two different values for TEMPLATE/DISK/SOURCE",
            ),
            (
                "<VM><ID>1</ID><SNAPSHOTS><SNAPSHOT><ID>0</ID></SNAPSHOT></SNAPSHOTS></VM>".into(),
                "no SNAPSHOTS/DISK_ID",
            ),
        ] {
            let error = Vm::parse(xml.as_bytes()).expect_err(&xml);
            assert!(error.to_string().contains(want), "{xml}: {error}");
            assert!(!error.to_string().contains('\n') && error.class() == Class::Usage, "{error}");
        }
        let huge = format!("<VM><ID>1</ID>{}</VM>", " ".repeat(33 << 20));
        assert!(matches!(Vm::parse(huge.as_bytes()), Err(OneError::TooLarge { .. })));
    }

    #[test]
    fn the_used_names_are_sorted() {
        assert!(USED.iter().all(|(_, names)| names.is_sorted()));
    }

    proptest! {
        #[test]
        fn no_markup_panics(inner in "(<|>|/|&|;|#|!|CDATA|\"|=| |VM|ID|DISK|DISK_ID|TEMPLATE|SNAPSHOTS|SNAPSHOT|HISTORY|1|ä){0,60}") {
            let _ = parse(&inner);
            let _ = Vm::parse(inner.as_bytes());
        }

        #[test]
        fn a_damaged_document_never_panics(at in 0..RECORDED.len(), byte in any::<u8>()) {
            let mut bytes = RECORDED.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = Vm::parse(&bytes);
        }

        #[test]
        fn a_cut_document_is_an_error(at in 0..RECORDED.trim_end().len()) {
            prop_assert!(Vm::parse(&RECORDED.as_bytes()[..at]).is_err());
        }
    }
}
