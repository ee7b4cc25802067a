//! Who answers questions about VMs, datastores, images and hosts: oned itself, or files for scripts and
//! tests that have none. Each object is asked for once per process.

use super::xml::{self, Values, Visit, Want};
use super::xmlrpc::{Arg, Rpc, Session};
use super::{DatastoreDoc, Datastores, ImageDoc, OneError, RpcOptions, Vm};
use crate::config::Env;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Answers questions about the cloud. A second question about the same object costs nothing.
pub trait Cloud: Send + Sync {
    fn vm(&self, id: u32) -> Result<Arc<Vm>, OneError>;
    fn datastore(&self, id: u32) -> Result<Arc<DatastoreDoc>, OneError>;
    fn datastores(&self) -> Result<Arc<Datastores>, OneError>;
    fn hosts(&self) -> Result<Arc<Vec<HostDoc>>, OneError>;
    fn image(&self, id: u32) -> Result<Arc<ImageDoc>, OneError>;

    /// Sets one attribute in the template of an image or a VM. Where oned is not asked there is none to set.
    fn set(&self, of: Template, name: &str, value: &str) -> Result<(), OneError> {
        let _ = (of, name, value);
        Ok(())
    }
}

/// Whose template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    Image(i64),
    Vm(u32),
}

/// The cloud of this process, which asks nobody before it is asked:
///
/// * `ONESDM_XML_DIR`: a directory with `vm-<id>.xml`, `datastore-<id>.xml`, `image-<id>.xml` and
///   `hosts.xml` (a HOST_POOL). oned is never asked; the datastores are those that have a file.
/// * `ONESDM_VM_XML`: the VM's document, or the path of a file with it. For all else, as without it.
/// * otherwise oned, at `ONE_XMLRPC`, `~/.one/one_endpoint` or the local port 2633, with the credentials
///   of `ONE_AUTH`, `~/.one/one_auth` or `<var>/.one/one_auth`, the first that exists.
///
/// `template` is the VM's document when the call itself brought it; it wins. `var` is OpenNebula's,
/// `datastores` where datastores live when a document does not say so.
pub fn cloud(
    env: &Env,
    var: &Path,
    datastores: &Path,
    options: RpcOptions,
    template: Option<&[u8]>,
) -> Result<Box<dyn Cloud>, OneError> {
    let rest: Box<dyn Cloud> = match &env.xml_dir {
        Some(dir) => Box::new(Files::new(dir, datastores)),
        None => Box::new(Oned::new(env, var, datastores, options)),
    };
    let vm = match (template, &env.vm_xml) {
        (Some(template), _) => Vm::parse(template)?,
        (None, Some(xml)) if xml.as_bytes().trim_ascii_start().starts_with(b"<") => {
            Vm::parse(xml.as_bytes())?
        }
        (None, Some(path)) => Vm::parse(&read(Path::new(path))?)?,
        (None, None) => return Ok(rest),
    };
    Ok(Box::new(WithVm { vm: Arc::new(vm), rest }))
}

/// A host as `one.hostpool.info` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDoc {
    pub id: u32,
    pub name: String,
    pub state: Option<u32>,
}

impl HostDoc {
    /// Whether work may be sent there: not in error, disabled or offline, nor being monitored out of
    /// one of these.
    pub fn is_usable(&self) -> bool {
        !matches!(self.state, Some(3 | 4 | 5 | 7 | 8))
    }

    /// From a HOST_POOL document.
    pub fn parse_pool(xml: &[u8]) -> Result<Vec<HostDoc>, OneError> {
        let mut pool = Hosts(Vec::new());
        xml::read(Hosts::DOC, "HOST_POOL", xml, &mut pool)?;
        let host = |v: Values| {
            let name = v.text("NAME").ok_or_else(|| v.missing("NAME"))?;
            Ok(HostDoc { id: v.need("ID")?, name, state: v.number("STATE")? })
        };
        pool.0.into_iter().map(host).collect()
    }
}

struct Hosts(Vec<Values>);

impl Hosts {
    const DOC: &str = "the host list";
}

impl Visit for Hosts {
    fn open(&mut self, parent: &str, name: &str) -> Result<Want, OneError> {
        Ok(match (parent, name) {
            ("", "HOST") => {
                self.0.push(Values::new(Self::DOC, "HOST"));
                Want::Inside
            }
            ("HOST", "ID" | "NAME" | "STATE") => Want::Value,
            _ => Want::Nothing,
        })
    }

    fn value(&mut self, path: &str, text: String) -> Result<(), OneError> {
        let name = path.rsplit('/').next().unwrap_or_default();
        self.0.last_mut().map_or(Ok(()), |host| host.put(name, text))
    }
}

/// Answers by key. Held locked while one is fetched, so two threads do not ask twice; failures are
/// asked again.
struct Memo<T>(Mutex<BTreeMap<u32, Arc<T>>>);

impl<T> Memo<T> {
    fn new() -> Memo<T> {
        Memo(Mutex::new(BTreeMap::new()))
    }

    fn get(&self, key: u32, ask: impl FnOnce() -> Result<T, OneError>) -> Result<Arc<T>, OneError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = known.get(&key) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(ask()?);
        known.insert(key, Arc::clone(&value));
        Ok(value)
    }
}

/// The answers of one cloud; lists have key 0.
struct Known {
    vms: Memo<Vm>,
    datastores: Memo<DatastoreDoc>,
    pool: Memo<Datastores>,
    hosts: Memo<Vec<HostDoc>>,
    images: Memo<ImageDoc>,
}

impl Known {
    fn new() -> Known {
        Known {
            vms: Memo::new(),
            datastores: Memo::new(),
            pool: Memo::new(),
            hosts: Memo::new(),
            images: Memo::new(),
        }
    }
}

/// oned over XML-RPC.
pub struct Oned {
    endpoint: Option<String>,
    endpoint_files: Vec<PathBuf>,
    auth_files: Vec<PathBuf>,
    datastores_dir: PathBuf,
    options: RpcOptions,
    /// Made at the first question: most verbs ask none.
    rpc: Memo<Rpc>,
    known: Known,
}

impl Oned {
    pub fn new(env: &Env, var: &Path, datastores: &Path, options: RpcOptions) -> Oned {
        let homes = || env.home.iter().map(PathBuf::as_path).chain([var]);
        let auth_files = match &env.one_auth {
            Some(path) => vec![path.clone()],
            None => homes().map(|home| home.join(".one/one_auth")).collect(),
        };
        Oned {
            endpoint: env.one_xmlrpc.clone(),
            endpoint_files: homes().map(|home| home.join(".one/one_endpoint")).collect(),
            auth_files,
            datastores_dir: datastores.to_owned(),
            options,
            rpc: Memo::new(),
            known: Known::new(),
        }
    }

    fn connect(&self) -> Result<Rpc, OneError> {
        let exists = |p: &&PathBuf| p.exists();
        let endpoint = match (&self.endpoint, self.endpoint_files.iter().find(exists)) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(path)) => String::from_utf8_lossy(&read(path)?).trim().to_owned(),
            (None, None) => "http://localhost:2633/RPC2".to_owned(),
        };
        // When none exists, the first is the one to name.
        let auth = self.auth_files.iter().find(exists).or_else(|| self.auth_files.first());
        let session = Session::read(auth.map_or(Path::new(""), PathBuf::as_path))?;
        Rpc::new(endpoint, session, &self.options)
    }

    /// A document of oned's that cannot be read is oned's failure, not the caller's.
    fn ask<T>(
        &self,
        method: &'static str,
        args: &[Arg<'_>],
        read: impl FnOnce(&[u8]) -> Result<T, OneError>,
    ) -> Result<T, OneError> {
        let rpc = self.rpc.get(0, || self.connect())?;
        let text = rpc.call(method, args)?;
        read(text.as_bytes()).map_err(|e| rpc.no_answer(method, &e.to_string()))
    }
}

impl Cloud for Oned {
    fn vm(&self, id: u32) -> Result<Arc<Vm>, OneError> {
        self.known.vms.get(id, || self.ask("one.vm.info", &[Arg::Number(id.into())], |xml| vm(xml, id)))
    }

    fn datastore(&self, id: u32) -> Result<Arc<DatastoreDoc>, OneError> {
        let read = |xml: &[u8]| datastore(xml, id, &self.datastores_dir);
        self.known.datastores.get(id, || self.ask("one.datastore.info", &[Arg::Number(id.into())], read))
    }

    fn datastores(&self) -> Result<Arc<Datastores>, OneError> {
        let read = |xml: &[u8]| Datastores::parse(xml, &self.datastores_dir);
        self.known.pool.get(0, || self.ask("one.datastorepool.info", &[], read))
    }

    fn hosts(&self) -> Result<Arc<Vec<HostDoc>>, OneError> {
        self.known.hosts.get(0, || self.ask("one.hostpool.info", &[], HostDoc::parse_pool))
    }

    fn image(&self, id: u32) -> Result<Arc<ImageDoc>, OneError> {
        self.known
            .images
            .get(id, || self.ask("one.image.info", &[Arg::Number(id.into())], |xml| image(xml, id)))
    }

    fn set(&self, of: Template, name: &str, value: &str) -> Result<(), OneError> {
        const MERGE: i64 = 1;
        let (method, id) = match of {
            Template::Image(id) => ("one.image.update", id),
            Template::Vm(id) => ("one.vm.update", id.into()),
        };
        let value = value.replace(['"', '\\'], "'");
        let text = format!("{name}=\"{value}\"");
        self.ask(method, &[Arg::Number(id), Arg::Text(&text), Arg::Number(MERGE)], |_| Ok(()))
    }
}

/// Documents in a directory; see `cloud`.
pub struct Files {
    dir: PathBuf,
    datastores_dir: PathBuf,
    known: Known,
}

impl Files {
    pub fn new(dir: &Path, datastores: &Path) -> Files {
        Files { dir: dir.to_owned(), datastores_dir: datastores.to_owned(), known: Known::new() }
    }

    fn pool(&self) -> Result<Datastores, OneError> {
        let open = |source| OneError::Open { path: self.dir.clone(), source };
        let mut pool = Datastores::default();
        for entry in std::fs::read_dir(&self.dir).map_err(open)? {
            let name = entry.map_err(open)?.file_name();
            let id =
                name.to_str().and_then(|n| n.strip_prefix("datastore-")?.strip_suffix(".xml")?.parse().ok());
            let Some(id) = id else { continue };
            match datastore(&read(&self.dir.join(&name))?, id, &self.datastores_dir) {
                Ok(doc) => pool.docs.push(doc),
                Err(e) => pool.bad.push((id.into(), e)),
            }
        }
        pool.docs.sort_by_key(|d| d.id);
        Ok(pool)
    }

    fn file(&self, name: &str) -> Result<Vec<u8>, OneError> {
        read(&self.dir.join(name))
    }
}

impl Cloud for Files {
    fn vm(&self, id: u32) -> Result<Arc<Vm>, OneError> {
        self.known.vms.get(id, || vm(&self.file(&format!("vm-{id}.xml"))?, id))
    }

    fn datastore(&self, id: u32) -> Result<Arc<DatastoreDoc>, OneError> {
        let file = || self.file(&format!("datastore-{id}.xml"));
        self.known.datastores.get(id, || datastore(&file()?, id, &self.datastores_dir))
    }

    fn datastores(&self) -> Result<Arc<Datastores>, OneError> {
        self.known.pool.get(0, || self.pool())
    }

    fn hosts(&self) -> Result<Arc<Vec<HostDoc>>, OneError> {
        self.known.hosts.get(0, || HostDoc::parse_pool(&self.file("hosts.xml")?))
    }

    fn image(&self, id: u32) -> Result<Arc<ImageDoc>, OneError> {
        self.known.images.get(id, || image(&self.file(&format!("image-{id}.xml"))?, id))
    }
}

/// A VM that is known already; everything else is asked elsewhere.
pub struct WithVm {
    pub vm: Arc<Vm>,
    pub rest: Box<dyn Cloud>,
}

impl Cloud for WithVm {
    fn vm(&self, id: u32) -> Result<Arc<Vm>, OneError> {
        same("the VM document", self.vm.id.into(), id)?;
        Ok(Arc::clone(&self.vm))
    }

    fn datastore(&self, id: u32) -> Result<Arc<DatastoreDoc>, OneError> {
        self.rest.datastore(id)
    }

    fn datastores(&self) -> Result<Arc<Datastores>, OneError> {
        self.rest.datastores()
    }

    fn hosts(&self) -> Result<Arc<Vec<HostDoc>>, OneError> {
        self.rest.hosts()
    }

    fn image(&self, id: u32) -> Result<Arc<ImageDoc>, OneError> {
        self.rest.image(id)
    }

    fn set(&self, of: Template, name: &str, value: &str) -> Result<(), OneError> {
        self.rest.set(of, name, value)
    }
}

fn vm(xml: &[u8], id: u32) -> Result<Vm, OneError> {
    let vm = Vm::parse(xml)?;
    same("the VM document", vm.id.into(), id)?;
    Ok(vm)
}

fn datastore(xml: &[u8], id: u32, datastores: &Path) -> Result<DatastoreDoc, OneError> {
    let doc = DatastoreDoc::parse(xml, datastores)?;
    same("the datastore document", doc.id, id)?;
    Ok(doc)
}

fn image(xml: &[u8], id: u32) -> Result<ImageDoc, OneError> {
    let doc = ImageDoc::parse(xml)?;
    same("the image document", doc.id.unwrap_or(-1), id)?;
    Ok(doc)
}

/// A document about another object would send a verb to that one's disks.
fn same(doc: &'static str, found: i64, want: u32) -> Result<(), OneError> {
    let want = i64::from(want);
    if found == want { Ok(()) } else { Err(OneError::OtherObject { doc, found, want }) }
}

/// A whole file, and never more than the largest legal document.
fn read(path: &Path) -> Result<Vec<u8>, OneError> {
    let open = |source| OneError::Open { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(open)?;
    let mut bytes = Vec::new();
    file.take(2 * super::MAX_DUMP).read_to_end(&mut bytes).map_err(open)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;
    use std::time::Duration;

    const VM: &str = include_str!("../../tests/fixtures/recorded/shared-raw/documents/doc-0048.xml");
    const DS: &str = include_str!("../../tests/fixtures/recorded/shared-raw/documents/doc-0022.xml");

    fn options() -> RpcOptions {
        RpcOptions { deadline: Duration::from_secs(2), ca_file: None, insecure: false }
    }

    /// The recorded documents have a placeholder where oned writes its place.
    fn ds() -> String {
        DS.replace("{VAR}", "/var/lib/one")
    }

    fn of(env: &Env, template: Option<&[u8]>) -> Result<Box<dyn Cloud>, OneError> {
        cloud(env, Path::new("/nowhere/var"), Path::new("/ds"), options(), template)
    }

    #[test]
    fn files_answer_without_oned() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("vm-0.xml", VM);
        put("vm-3.xml", VM);
        put("datastore-100.xml", &ds());
        put("datastore-7.xml", "<DATASTORE><ID>7</ID><TYPE>9</TYPE></DATASTORE>");
        put("image-2.xml", "<IMAGE><ID>2</ID><SIZE>5</SIZE><PERSISTENT>1</PERSISTENT></IMAGE>");
        put(
            "hosts.xml",
            "<HOST_POOL><HOST><ID>0</ID><NAME>a</NAME><STATE>2</STATE><X><ID>9</ID></X></HOST>\
             <HOST><ID>1</ID><NAME>b</NAME><STATE>4</STATE></HOST></HOST_POOL>",
        );
        let env = Env { xml_dir: Some(dir.path().into()), ..Env::default() };
        let cloud = of(&env, None).unwrap();
        assert_eq!(cloud.vm(0).unwrap().disks.len(), 6);
        assert!(matches!(cloud.vm(3), Err(OneError::OtherObject { found: 0, want: 3, .. })));
        assert_eq!(cloud.vm(1).unwrap_err().class(), Class::NotFound);
        let datastore = cloud.datastore(100).unwrap();
        assert_eq!(datastore.tm_mad.as_deref(), Some("shared"));
        assert_eq!(datastore.base_path, "/var/lib/one//datastores/100");
        let pool = cloud.datastores().unwrap();
        assert_eq!((pool.docs.len(), pool.docs[0].id, pool.bad[0].0), (1, 100, 7));
        let image = cloud.image(2).unwrap();
        assert!(image.persistent && image.size == crate::sys::Bytes::mib(5));
        let hosts = cloud.hosts().unwrap();
        assert_eq!(
            hosts.iter().map(|h| (h.name.as_str(), h.is_usable())).collect::<Vec<_>>(),
            [("a", true), ("b", false)]
        );
        std::fs::write(dir.path().join("vm-0.xml"), "").unwrap();
        assert_eq!(cloud.vm(0).unwrap().id, 0, "read once");
    }

    #[test]
    fn a_vm_comes_from_the_call_a_variable_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.xml");
        let with = |vm_xml: &str| Env {
            vm_xml: Some(vm_xml.into()),
            xml_dir: Some(dir.path().into()),
            ..Env::default()
        };
        std::fs::write(&path, VM).unwrap();
        assert_eq!(of(&with(path.to_str().unwrap()), None).unwrap().vm(0).unwrap().name, "lc1-vm");
        let cloud = of(&with(" <VM><ID>4</ID></VM>"), None).unwrap();
        assert!(cloud.vm(4).is_ok() && cloud.vm(5).is_err() && cloud.datastore(1).is_err());
        let cloud = of(&with("/nowhere"), Some(b"<VM><ID>5</ID></VM>")).unwrap();
        assert!(cloud.vm(5).is_ok());
        assert_eq!(of(&with("/nowhere"), None).err().unwrap().class(), Class::NotFound);
        assert!(of(&with("<VM>"), None).is_err());
    }

    #[test]
    fn pools_of_datastores() {
        let many: String = (0..2000).map(|n| format!("<ID>{n}</ID>")).collect();
        let other = ds().replace("<ID>100</ID>", "<ID>101</ID>").replace("<ID>6</ID>", &many);
        let bad =
            "<DATASTORE><ID>5</ID><TEMPLATE><NFS_AUTO_ENABLE>yes</NFS_AUTO_ENABLE></TEMPLATE></DATASTORE>";
        let xml = format!("<DATASTORE_POOL>{}{bad}{other}<X><DATASTORE/></X></DATASTORE_POOL>", ds());
        let pool = Datastores::parse(xml.as_bytes(), Path::new("/ds")).unwrap();
        assert_eq!(pool.docs.iter().map(|d| d.id).collect::<Vec<_>>(), [100, 101]);
        assert_eq!(pool.bad.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [5]);
        assert!(pool.bad[0].1.to_string().contains("NFS_AUTO_HOST"), "{}", pool.bad[0].1);
        assert!(Datastores::parse(b"<DATASTORE_POOL/>", Path::new("/")).unwrap().docs.is_empty());
        assert!(Datastores::parse(b"<HOST_POOL/>", Path::new("/")).is_err());
        assert!(Datastores::parse(b"<DATASTORE_POOL><DATASTORE/></DATASTORE_POOL>", Path::new("/")).is_err());
    }

    #[test]
    fn credentials_and_addresses_are_looked_for_in_order() {
        let home = tempfile::tempdir().unwrap();
        let var = tempfile::tempdir().unwrap();
        let env = Env { home: Some(home.path().into()), ..Env::default() };
        let connect = |env: &Env| Oned::new(env, var.path(), Path::new("/ds"), options()).connect();
        let error = connect(&env).unwrap_err();
        assert!(error.to_string().contains(home.path().to_str().unwrap()), "{error}");
        assert_eq!(error.class(), Class::NotFound);
        for dir in [var.path(), home.path()] {
            std::fs::create_dir(dir.join(".one")).unwrap();
            std::fs::write(dir.join(".one/one_auth"), "oneadmin:topsecret\n").unwrap();
            let rpc = connect(&env).unwrap();
            assert!(!format!("{rpc:?}").contains("topsecret"), "{rpc:?}");
        }
        assert!(format!("{:?}", connect(&env).unwrap()).contains("localhost:2633"));
        std::fs::write(var.path().join(".one/one_endpoint"), "https://var:1/RPC2\n").unwrap();
        assert!(format!("{:?}", connect(&env).unwrap()).contains("https://var:1/RPC2"));
        let set = Env { one_xmlrpc: Some("http://set:2/".into()), one_auth: Some("/nowhere".into()), ..env };
        let error = connect(&set).unwrap_err();
        assert!(error.to_string().contains("/nowhere") && error.to_string().contains("ONE_AUTH"), "{error}");
    }
}
