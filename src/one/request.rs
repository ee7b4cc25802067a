//! A datastore verb's message as types: what each verb may ask for, with OpenNebula's defaults applied
//! where they are rules of the contract and left open where the verb decides.

use super::dump::MESSAGE;
use super::{DsDump, OneError};
use crate::sys::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// OpenNebula's yes, in any case of letters.
pub fn is_yes(word: &str) -> bool {
    let word = word.trim();
    word.eq_ignore_ascii_case("yes") || word.eq_ignore_ascii_case("true")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsType {
    Image,
    System,
    Files,
    Backup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageType {
    Os,
    CdRom,
    Datablock,
    Kernel,
    Ramdisk,
    Context,
    Backup,
    Filesystem,
    /// A number newer than this program.
    Other(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DigestKind {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

/// One datastore request.
#[derive(Debug)]
pub struct DsRequest {
    /// Absent for monitor; only path and size for stat.
    pub image: Option<ImageDoc>,
    pub datastore: DatastoreDoc,
    /// The snapshot a `snap_*` verb is about.
    pub target_snapshot: Option<i64>,
    /// Bridge hosts of the datastore a cloned image comes from.
    pub source_bridge_list: Vec<String>,
    pub datastore_location: Option<String>,
    /// Whether a system datastore's monitor also reports the disks of VMs.
    pub monitor_vm_disks: bool,
    pub marketplace: Option<MarketDoc>,
}

#[derive(Debug, Default)]
pub struct ImageDoc {
    pub id: Option<i64>,
    /// What the user gave: a path or a URL; for clone the source of the original.
    pub path: Option<String>,
    /// What cp, mkfs or clone answered when the image was made.
    pub source: Option<String>,
    pub kind: Option<ImageType>,
    /// `FORMAT`, or `FSTYPE` as cores of generation 5 call it.
    pub format: Option<String>,
    pub fs: Option<String>,
    pub size: Option<Bytes>,
    pub persistent: bool,
    /// Seconds since 1970.
    pub regtime: Option<u64>,
    pub state: Option<i64>,
    pub running_vms: Option<u64>,
    pub cloning_ops: Option<u64>,
    /// The image this one is being cloned from.
    pub cloning_id: Option<i64>,
    pub driver: Option<String>,
    digests: Vec<(DigestKind, String)>,
}

#[derive(Debug)]
pub struct DatastoreDoc {
    pub id: i64,
    /// As oned wrote it, with its double slashes: answers repeat it byte for byte.
    pub base_path: String,
    pub kind: Option<DsType>,
    pub ds_mad: Option<String>,
    pub tm_mad: Option<String>,
    /// `FILE`, `BLOCK`, ... of the template.
    pub disk_type: Option<String>,
    pub restricted_dirs: Vec<String>,
    pub safe_dirs: Vec<String>,
    pub bridge_list: Vec<String>,
    pub staging_dir: Option<String>,
    pub no_decompress: Option<bool>,
    /// A rate as curl writes it.
    pub limit_transfer_bw: Option<String>,
    pub convert: Option<bool>,
    pub driver: Option<String>,
    /// Unless `no`, holes are made where zeros are.
    pub sparse: bool,
    /// Unless `no`, persistent images on a volume group lie in pools.
    pub lvm_thin_enable: bool,
    pub nfs_auto: Option<NfsAuto>,
    /// Stock's replica host and its cache, which are not offered here: verbs that meet them warn.
    pub replica_host: Option<String>,
    pub cache_enable: bool,
    /// `ONESDM_*` attributes under their whole names.
    pub onesdm: BTreeMap<String, String>,
}

/// An NFS export the datastore's directory is to be mounted from.
#[derive(Debug, PartialEq, Eq)]
pub struct NfsAuto {
    pub host: String,
    pub path: String,
    pub options: Option<String>,
}

#[derive(Debug)]
pub struct MarketDoc {
    pub id: Option<i64>,
    pub mad: Option<String>,
}

impl DsDump {
    /// The message as a request. `datastores` is where datastores live when the message does not
    /// say so (cores that send no `BASE_PATH`). A bad number is an error that names its element.
    pub fn request(&self, datastores: &Path) -> Result<DsRequest, OneError> {
        Ok(DsRequest {
            image: self.has_image().then(|| self.image()).transpose()?,
            datastore: self.datastore(datastores)?,
            target_snapshot: self.target_snapshot()?,
            source_bridge_list: self.values.words("SOURCE_BRIDGE_LIST"),
            datastore_location: self.values.text("DATASTORE_LOCATION"),
            monitor_vm_disks: self.values.flag("MONITOR_VM_DISKS"),
            marketplace: match (
                self.values.number("MARKETPLACE/ID")?,
                self.values.text("MARKETPLACE/MARKET_MAD"),
            ) {
                (None, None) => None,
                (id, mad) => Some(MarketDoc { id, mad }),
            },
        })
    }

    fn image(&self) -> Result<ImageDoc, OneError> {
        let digests = [
            (DigestKind::Md5, "IMAGE/TEMPLATE/MD5"),
            (DigestKind::Sha1, "IMAGE/TEMPLATE/SHA1"),
            (DigestKind::Sha256, "IMAGE/TEMPLATE/SHA256"),
            (DigestKind::Sha512, "IMAGE/TEMPLATE/SHA512"),
        ];
        let kind = |n: u32| match n {
            0 => ImageType::Os,
            1 => ImageType::CdRom,
            2 => ImageType::Datablock,
            3 => ImageType::Kernel,
            4 => ImageType::Ramdisk,
            5 => ImageType::Context,
            6 => ImageType::Backup,
            7 => ImageType::Filesystem,
            n => ImageType::Other(n),
        };
        Ok(ImageDoc {
            id: self.values.number("IMAGE/ID")?,
            path: self.values.text("IMAGE/PATH"),
            source: self.values.text("IMAGE/SOURCE"),
            kind: self.values.number("IMAGE/TYPE")?.map(kind),
            format: self.values.text("IMAGE/FORMAT").or_else(|| self.values.text("IMAGE/FSTYPE")),
            fs: self.values.text("IMAGE/FS"),
            size: self.values.mib("IMAGE/SIZE")?,
            persistent: self.values.flag("IMAGE/PERSISTENT"),
            regtime: self.values.number("IMAGE/REGTIME")?,
            state: self.values.number("IMAGE/STATE")?,
            running_vms: self.values.number("IMAGE/RUNNING_VMS")?,
            cloning_ops: self.values.number("IMAGE/CLONING_OPS")?,
            cloning_id: self.values.number("IMAGE/CLONING_ID")?.filter(|id| *id != -1),
            driver: self.values.text("IMAGE/TEMPLATE/DRIVER"),
            digests: digests
                .into_iter()
                .filter_map(|(kind, path)| Some((kind, self.values.text(path)?)))
                .collect(),
        })
    }

    fn datastore(&self, datastores: &Path) -> Result<DatastoreDoc, OneError> {
        let id: i64 = self.values.need("DATASTORE/ID")?;
        let base_path =
            match (self.values.text("DATASTORE/BASE_PATH"), self.values.text("DATASTORE_LOCATION")) {
                (Some(path), _) => path,
                (None, Some(location)) => format!("{location}/{id}"),
                (None, None) => format!("{}/{id}", datastores.display()),
            };
        let possible = base_path.starts_with('/') && base_path.len() <= super::url::LONGEST;
        // The core takes the path of an answer to end at a blank.
        let splits = base_path.contains(|c: char| c.is_whitespace() || c.is_control());
        if !possible || splits || base_path.split('/').any(|c| c == "..") {
            let want = "an absolute path without \"..\", blanks and control characters";
            return Err(self.values.bad("DATASTORE/BASE_PATH", want));
        }
        let kind = match self.values.number::<i64>("DATASTORE/TYPE")? {
            None => None,
            Some(0) => Some(DsType::Image),
            Some(1) => Some(DsType::System),
            Some(2) => Some(DsType::Files),
            Some(3) => Some(DsType::Backup),
            Some(_) => return Err(self.values.bad("DATASTORE/TYPE", "0, 1, 2 or 3")),
        };
        let template = |name: &str| self.values.text(&format!("DATASTORE/TEMPLATE/{name}"));
        let list = |name: &str| self.values.words(&format!("DATASTORE/TEMPLATE/{name}"));
        let yes = |name: &str| template(name).map(|v| is_yes(&v));
        let disk_type = template("DISK_TYPE").or_else(|| {
            // As a number where the template has no word: 2 is a block device.
            self.get("DATASTORE/DISK_TYPE").map(|n| if n.trim() == "2" { "BLOCK" } else { "FILE" }.into())
        });
        let nfs_auto = match (yes("NFS_AUTO_ENABLE"), template("NFS_AUTO_HOST"), template("NFS_AUTO_PATH")) {
            (Some(true), Some(host), Some(path)) => {
                Some(NfsAuto { host, path, options: template("NFS_AUTO_OPTS") })
            }
            (Some(true), None, _) => {
                return Err(self.values.missing("DATASTORE/TEMPLATE/NFS_AUTO_HOST"));
            }
            (Some(true), _, None) => {
                return Err(self.values.missing("DATASTORE/TEMPLATE/NFS_AUTO_PATH"));
            }
            _ => None,
        };
        Ok(DatastoreDoc {
            id,
            base_path,
            kind,
            ds_mad: self.values.text("DATASTORE/DS_MAD"),
            tm_mad: self.values.text("DATASTORE/TM_MAD"),
            disk_type,
            restricted_dirs: list("RESTRICTED_DIRS"),
            safe_dirs: list("SAFE_DIRS"),
            bridge_list: list("BRIDGE_LIST"),
            staging_dir: template("STAGING_DIR"),
            no_decompress: yes("NO_DECOMPRESS"),
            limit_transfer_bw: template("LIMIT_TRANSFER_BW"),
            convert: yes("CONVERT"),
            driver: template("DRIVER"),
            sparse: self.values.unless_no("DATASTORE/TEMPLATE/SPARSE"),
            lvm_thin_enable: self.values.unless_no("DATASTORE/TEMPLATE/LVM_THIN_ENABLE"),
            nfs_auto,
            replica_host: template("REPLICA_HOST"),
            cache_enable: self.values.flag("DATASTORE/TEMPLATE/CACHE_ENABLE"),
            onesdm: self.attributes(),
        })
    }

    /// Generation 5 documents it at the root, cores send it inside IMAGE; -1 is none.
    fn target_snapshot(&self) -> Result<Option<i64>, OneError> {
        let inner: Option<i64> = self.values.number("IMAGE/TARGET_SNAPSHOT")?;
        let root = self.values.number("TARGET_SNAPSHOT")?;
        match (inner.filter(|n| *n != -1), root.filter(|n| *n != -1)) {
            (Some(a), Some(b)) if a != b => Err(self.values.ambiguous("TARGET_SNAPSHOT")),
            (Some(n), _) if n < -1 => Err(self.values.bad("IMAGE/TARGET_SNAPSHOT", "a snapshot id")),
            (None, Some(n)) if n < -1 => Err(self.values.bad("TARGET_SNAPSHOT", "a snapshot id")),
            (a, b) => Ok(a.or(b)),
        }
    }
}

impl ImageDoc {
    /// From an IMAGE document as oned's API answers it.
    pub fn parse(xml: &[u8]) -> Result<ImageDoc, OneError> {
        DsDump::object("the image document", "IMAGE", xml)?.image()
    }

    /// The digests the user gave, in lower-case hex. Asked for by verbs that read the image only: an
    /// image with a bad digest can still be removed.
    pub fn digests(&self) -> Result<Vec<(DigestKind, String)>, OneError> {
        let check = |(kind, text): &(DigestKind, String)| {
            let (len, path, want) = match kind {
                DigestKind::Md5 => (32, "IMAGE/TEMPLATE/MD5", "32 hex digits"),
                DigestKind::Sha1 => (40, "IMAGE/TEMPLATE/SHA1", "40 hex digits"),
                DigestKind::Sha256 => (64, "IMAGE/TEMPLATE/SHA256", "64 hex digits"),
                DigestKind::Sha512 => (128, "IMAGE/TEMPLATE/SHA512", "128 hex digits"),
            };
            let digest = text.trim().to_ascii_lowercase();
            if digest.len() == len && digest.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Ok((*kind, digest));
            }
            let value = text.chars().take(140).collect();
            Err(OneError::Value { doc: "the image", path: path.into(), value, want })
        };
        self.digests.iter().map(check).collect()
    }
}

/// All datastores of the cloud.
#[derive(Debug, Default)]
pub struct Datastores {
    pub docs: Vec<DatastoreDoc>,
    /// Those whose values make no sense, by id: they exist, and nothing else is known of them.
    pub bad: Vec<(i64, OneError)>,
}

impl Datastores {
    /// From a DATASTORE_POOL document.
    pub fn parse(xml: &[u8], datastores: &Path) -> Result<Datastores, OneError> {
        let mut out = Datastores::default();
        for dump in super::dump::pool("the datastore list", xml)? {
            match dump.datastore(datastores) {
                Ok(doc) => out.docs.push(doc),
                Err(e) => out.bad.push((dump.values.need("DATASTORE/ID")?, e)),
            }
        }
        Ok(out)
    }
}

impl DatastoreDoc {
    /// From a DATASTORE document as oned's API answers it. `datastores` is where datastores live when
    /// the document does not say so.
    pub fn parse(xml: &[u8], datastores: &Path) -> Result<DatastoreDoc, OneError> {
        DsDump::object("the datastore document", "DATASTORE", xml)?.datastore(datastores)
    }

    /// Its directory, as a clean path.
    pub fn dir(&self) -> PathBuf {
        super::name::squeeze(&self.base_path)
    }

    /// Whether its images are logical volumes and not files.
    pub fn is_block(&self) -> bool {
        self.tm_mad.as_deref().is_some_and(|m| m == "lvm" || m == "sdm_lvm")
            || self.disk_type.as_deref().is_some_and(|t| t.trim().eq_ignore_ascii_case("BLOCK"))
    }

    /// Whether compressed sources are stored unpacked: files are kept as they are unless the
    /// datastore says otherwise.
    pub fn decompresses(&self) -> bool {
        !self.no_decompress.unwrap_or(self.kind == Some(DsType::Files))
    }
}

impl DsRequest {
    /// The image, for verbs that cannot do without.
    pub fn image(&self) -> Result<&ImageDoc, OneError> {
        self.image.as_ref().ok_or_else(|| OneError::Missing { doc: MESSAGE, path: "IMAGE".into() })
    }

    /// The format a new image is to be stored in, when the datastore asks for one: its DRIVER, but
    /// never for CD-ROMs, files, or with CONVERT off.
    pub fn target_format(&self) -> Option<&str> {
        let kept = self.datastore.kind == Some(DsType::Files)
            || self.datastore.convert == Some(false)
            || self.image.as_ref().is_some_and(|i| i.kind == Some(ImageType::CdRom));
        self.datastore.driver.as_deref().filter(|d| !kept && ["raw", "qcow2"].contains(d))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(document: &str) -> DsRequest {
        DsDump::parse(document.as_bytes()).unwrap().request(Path::new("/nowhere")).unwrap()
    }

    fn ask(image: &str, datastore: &str, rest: &str) -> Result<DsRequest, OneError> {
        let xml = format!(
            "<DS_DRIVER_ACTION_DATA>{image}<DATASTORE><ID>7</ID>{datastore}</DATASTORE>{rest}</DS_DRIVER_ACTION_DATA>"
        );
        DsDump::parse(xml.as_bytes())?.request(Path::new("/srv/datastores"))
    }

    #[test]
    fn recorded_requests() {
        let cp = recorded(include_str!("../../tests/fixtures/documents/cp.xml"));
        let image = cp.image().unwrap();
        assert_eq!((image.id, image.regtime), (Some(0), Some(1_795_167_999)));
        assert_eq!((image.path.as_deref(), image.source.as_deref()), (Some("/srv/images/lc1.raw"), None));
        assert_eq!((image.kind, image.size, image.persistent), (Some(ImageType::Os), Bytes::mib(32), false));
        assert_eq!((image.format.as_deref(), cp.target_format()), (None, Some("raw")));
        assert_eq!((image.state, image.running_vms, image.cloning_id), (Some(4), Some(0), None));
        assert_eq!(image.digests().unwrap(), []);
        let ds = &cp.datastore;
        assert_eq!((ds.id, ds.base_path.as_str()), (100, "/var/lib/one//datastores/100"));
        assert_eq!(ds.dir(), Path::new("/var/lib/one/datastores/100"));
        assert_eq!((ds.ds_mad.as_deref(), ds.tm_mad.as_deref()), (Some("fs"), Some("shared")));
        assert_eq!(
            (ds.kind, ds.safe_dirs.as_slice()),
            (Some(DsType::Image), &["/srv/images".to_owned()][..])
        );
        assert!(ds.sparse && ds.decompresses() && !ds.is_block() && ds.nfs_auto.is_none());
        assert_eq!(cp.target_snapshot, None);

        let monitor = recorded(include_str!("../../tests/fixtures/documents/monitor.xml"));
        assert!(monitor.image.is_none() && !monitor.monitor_vm_disks);
        assert_eq!(monitor.datastore.restricted_dirs, ["/"]);
        let stat = recorded(include_str!("../../tests/fixtures/documents/stat.xml"));
        let image = stat.image().unwrap();
        assert_eq!((image.path.as_deref(), image.size, image.id), (Some("/srv/images/lc1.raw"), None, None));
        let mkfs = recorded(include_str!("../../tests/fixtures/documents/mkfs.xml"));
        let image = mkfs.image().unwrap();
        assert_eq!(
            (image.path.as_deref(), image.format.as_deref(), image.fs.as_deref()),
            (None, Some("raw"), None)
        );
        assert!(image.persistent && image.kind == Some(ImageType::Datablock));
        let clone = recorded(include_str!("../../tests/fixtures/documents/clone.xml"));
        assert_eq!(clone.image().unwrap().cloning_id, Some(0));
        let revert = recorded(include_str!("../../tests/fixtures/documents/snap_revert.xml"));
        assert_eq!(revert.target_snapshot, Some(0));
        let source = revert.image().unwrap().source.clone().unwrap();
        let name = crate::one::source_name(&revert.datastore.base_path, &source).unwrap();
        assert_eq!(name.source(&revert.datastore.base_path), source);
        let old = recorded(include_str!("../../tests/fixtures/documents/cp-5.x.xml"));
        assert_eq!(old.datastore.base_path, "/nowhere/1");
        assert_eq!(old.image().unwrap().path.as_deref(), Some("/tmp/ttylinux.img"));
    }

    #[test]
    fn the_target_snapshot_is_one() {
        for (inner, root, want) in [
            ("", "", Ok(None)),
            ("-1", "", Ok(None)),
            ("-1", "-1", Ok(None)),
            ("0", "", Ok(Some(0))),
            ("", "3", Ok(Some(3))),
            ("3", "3", Ok(Some(3))),
            ("3", "-1", Ok(Some(3))),
            ("-1", "3", Ok(Some(3))),
            ("3", "4", Err("two different values for TARGET_SNAPSHOT")),
            ("-2", "", Err("expected a snapshot id")),
            ("../1", "", Err("IMAGE/TARGET_SNAPSHOT")),
        ] {
            let image = format!("<IMAGE><TARGET_SNAPSHOT>{inner}</TARGET_SNAPSHOT></IMAGE>");
            match (ask(&image, "", &format!("<TARGET_SNAPSHOT>{root}</TARGET_SNAPSHOT>")), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.target_snapshot, want, "{inner} {root}"),
                (Err(e), Err(want)) => assert!(e.to_string().contains(want), "{e}"),
                (got, want) => panic!("{inner} {root}: {got:?}, expected {want:?}"),
            }
        }
    }

    #[test]
    fn bad_values_name_their_element() {
        for (image, datastore, want) in [
            ("<SIZE>1x</SIZE>", "", "IMAGE/SIZE in the driver message is \"1x\", expected a number"),
            ("<SIZE>-1</SIZE>", "", "IMAGE/SIZE"),
            ("<SIZE>18446744073709551615</SIZE>", "", "expected a size in MiB"),
            ("<ID>a\nb</ID>", "", "\"a\\nb\""),
            ("<REGTIME>soon</REGTIME>", "", "IMAGE/REGTIME"),
            ("", "<TYPE>4</TYPE>", "DATASTORE/TYPE"),
            ("", "<BASE_PATH>x</BASE_PATH>", "DATASTORE/BASE_PATH"),
            ("", "<BASE_PATH>/a/../b</BASE_PATH>", "DATASTORE/BASE_PATH"),
            ("", "<BASE_PATH>/a b</BASE_PATH>", "DATASTORE/BASE_PATH"),
            ("", "<BASE_PATH>/a&#10;/etc/passwd raw</BASE_PATH>", "DATASTORE/BASE_PATH"),
            ("", "<TEMPLATE><NFS_AUTO_ENABLE>Yes</NFS_AUTO_ENABLE></TEMPLATE>", "NFS_AUTO_HOST"),
        ] {
            let error = ask(&format!("<IMAGE>{image}</IMAGE>"), datastore, "").unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert!(DsDump::parse(b"<DS_DRIVER_ACTION_DATA/>").unwrap().request(Path::new("/d")).is_err());
    }

    #[test]
    fn a_base_path_is_found_on_old_cores_too() {
        for (base, location, want) in
            [("/a//b", "/l", "/a//b"), ("", "/l//d", "/l//d/7"), ("", "", "/srv/datastores/7")]
        {
            let datastore = format!("<BASE_PATH>{base}</BASE_PATH>");
            let rest = format!("<DATASTORE_LOCATION>{location}</DATASTORE_LOCATION>");
            assert_eq!(ask("", &datastore, &rest).unwrap().datastore.base_path, want);
        }
    }

    #[test]
    fn the_target_format_is_the_datastores() {
        let template = |s: &str| format!("<TYPE>0</TYPE><TEMPLATE><DRIVER>qcow2</DRIVER>{s}</TEMPLATE>");
        for (image, datastore, want) in [
            ("", template(""), Some("qcow2")),
            ("", template("<CONVERT>YES</CONVERT>"), Some("qcow2")),
            ("", template("<CONVERT>no</CONVERT>"), None),
            ("<TYPE>1</TYPE>", template(""), None),
            ("", template("").replace("<TYPE>0", "<TYPE>2"), None),
            ("", "<TEMPLATE><DRIVER>ceph</DRIVER></TEMPLATE>".into(), None),
        ] {
            let request = ask(&format!("<IMAGE>{image}</IMAGE>"), &datastore, "").unwrap();
            assert_eq!(request.target_format(), want, "{image} {datastore}");
        }
    }

    #[test]
    fn words_of_the_datastore() {
        for (datastore, check) in [
            ("<TYPE>2</TYPE>", (|d| !d.decompresses()) as fn(&DatastoreDoc) -> bool),
            ("<TYPE>2</TYPE><TEMPLATE><NO_DECOMPRESS>no</NO_DECOMPRESS></TEMPLATE>", |d| d.decompresses()),
            ("<TEMPLATE><NO_DECOMPRESS>Yes</NO_DECOMPRESS></TEMPLATE>", |d| !d.decompresses()),
            ("<TEMPLATE><LVM_THIN_ENABLE>no</LVM_THIN_ENABLE></TEMPLATE>", |d| {
                !d.lvm_thin_enable && d.sparse
            }),
            ("<TEMPLATE><SPARSE>NO</SPARSE></TEMPLATE>", |d| !d.sparse && d.lvm_thin_enable),
            ("<TEMPLATE><SPARSE>maybe</SPARSE></TEMPLATE>", |d| d.sparse),
            ("<TM_MAD>sdm_lvm</TM_MAD>", DatastoreDoc::is_block),
            ("<DISK_TYPE>2</DISK_TYPE>", DatastoreDoc::is_block),
            ("<TEMPLATE><DISK_TYPE>BLOCK</DISK_TYPE></TEMPLATE>", DatastoreDoc::is_block),
            ("<DISK_TYPE>2</DISK_TYPE><TEMPLATE><DISK_TYPE>FILE</DISK_TYPE></TEMPLATE>", |d| !d.is_block()),
            ("<TEMPLATE><BRIDGE_LIST> a  b\n</BRIDGE_LIST></TEMPLATE>", |d| d.bridge_list == ["a", "b"]),
            ("<TEMPLATE><ONESDM_X>1</ONESDM_X><PASSWORD>p</PASSWORD></TEMPLATE>", |d| {
                d.onesdm.len() == 1 && d.onesdm["ONESDM_X"] == "1"
            }),
        ] {
            assert!(check(&ask("", datastore, "").unwrap().datastore), "{datastore}");
        }
        for (word, yes) in
            [("yes", true), ("YES", true), ("Yes", true), ("True", true), ("no", false), ("1", false)]
        {
            assert_eq!(is_yes(word), yes);
        }
    }

    #[test]
    fn digests_are_checked_when_they_are_asked_for() {
        let image = |md5: &str| ask(&format!("<IMAGE><TEMPLATE><MD5>{md5}</MD5></TEMPLATE></IMAGE>"), "", "");
        let good = image(" D41D8CD98F00B204E9800998ECF8427E ").unwrap();
        let want = (DigestKind::Md5, "d41d8cd98f00b204e9800998ecf8427e".to_owned());
        assert_eq!(good.image().unwrap().digests().unwrap(), [want]);
        for bad in
            ["x", "$(touch /tmp/x)", "d41d8cd98f00b204e9800998ecf8427", "d41d8cd98f00b204e9800998ecf8427g"]
        {
            let request = image(bad).unwrap();
            let error = request.image().unwrap().digests().unwrap_err().to_string();
            assert!(error.contains("IMAGE/TEMPLATE/MD5") && error.contains("32 hex digits"), "{error}");
        }
    }
}
