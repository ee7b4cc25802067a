//! The recorded transfer calls and the documents they refer to, through the library: every call parses,
//! every document is read, and oned answers them over HTTP.

use crate::oned_server::{Manner, OnedServer, SESSION};
use onesdm::config::Env;
use onesdm::one::{Cloud, DatastoreDoc, DsDump, Leaf, OneError, Oned, RpcOptions, TmCall, Vm};
use onesdm::sys::Class;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FOLDERS: [&str; 2] = ["shared-raw", "ssh-raw"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recorded").join(name)
}

/// The recorded tm calls with their places filled in.
fn calls(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder(name).join("calls.jsonl")).unwrap();
    let calls = text.lines().map(|line| serde_json::from_str::<Value>(&here(line)).unwrap());
    calls.filter(|call| call["role"] == "tm").collect()
}

fn document(name: &str, file: &Value) -> String {
    here(&std::fs::read_to_string(folder(name).join("documents").join(file.as_str().unwrap())).unwrap())
}

fn here(text: &str) -> String {
    text.replace("{VAR}", "/var/lib/one").replace("{IMAGES}", "/srv/images").replace("{ONE}", "/one")
}

fn parse(name: &str, call: &Value) -> TmCall {
    let args: Vec<OsString> =
        call["argv"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().into()).collect();
    let stdin: Vec<u8> = match call["stdin"]["encoding"].as_str().unwrap() {
        "none" => Vec::new(),
        "base64" => crate::bed::base64(document(name, &call["stdin"]["document"])),
        _ => document(name, &call["stdin"]["document"]).into(),
    };
    let parsed = TmCall::from(call["verb"].as_str().unwrap(), &args, stdin.as_slice());
    parsed.unwrap_or_else(|e| panic!("{name} {} {}: {e}", call["verb"], call["argv"]))
}

#[test]
fn every_recorded_transfer_call_is_understood() {
    let mut verbs = BTreeSet::new();
    for name in FOLDERS {
        for call in calls(name) {
            let verb = call["verb"].as_str().unwrap();
            let at = format!("{name} call {}", call["seq"]);
            verbs.insert(verb.to_owned());
            let parsed = parse(name, &call);
            if let TmCall::Monitor(monitor) = &parsed {
                let request = DsDump::parse(&monitor.dump).unwrap().request(Path::new("/ds")).unwrap();
                assert_eq!(Some(request.datastore.id), monitor.id, "{at}");
                continue;
            }
            let vm = Vm::parse(document(name, &call["vm"]).as_bytes()).unwrap();
            let object = parsed.object().unwrap();
            assert_eq!(object.vm, vm.id, "{at}");
            assert!(call["datastores"].get(object.ds.unwrap().to_string()).is_some(), "{at}");
            check(&at, verb, &parsed, &vm);
        }
    }
    let all = "clone context cpds delete ln mkimage mkswap monitor mv mvds postmigrate premigrate resize snap_create \
               snap_create_live snap_delete snap_revert";
    assert_eq!(verbs.iter().map(String::as_str).collect::<Vec<_>>().join(" "), all);
}

/// The call became the variant of its verb, and its disk is one the document knows.
fn check(at: &str, verb: &str, call: &TmCall, vm: &Vm) {
    let datastore = |id: Option<u32>| id.is_some_and(|id| [101, 102].contains(&id));
    let known = |id: Option<u32>| assert!(id.is_some_and(|id| vm.disk(id).is_some()), "{at}: {id:?}");
    match (verb, call) {
        ("clone", TmCall::Clone(c)) | ("ln", TmCall::Ln(c)) => {
            known(c.to.disk_id());
            let disk = vm.disk(c.to.disk_id().unwrap()).unwrap();
            assert_eq!(disk.is_persistent(), verb == "ln", "{at}");
            let source = disk.source.as_deref().unwrap().replace("//", "/");
            assert_eq!(
                (c.image.path.to_str(), c.image.host.is_some()),
                (Some(source.as_str()), true),
                "{at}"
            );
            assert_eq!(c.to.dir.translate(&c.image.path).as_deref(), Some(c.image.path.as_path()), "{at}");
        }
        ("mv", TmCall::Mv(c)) => {
            assert!(c.from.host.is_some() && c.to.host.is_some() && c.from.leaf == c.to.leaf, "{at}");
            assert!(datastore(Some(c.from.dir.ds)) && datastore(Some(c.to.dir.ds)), "{at}");
            if c.to.leaf != Leaf::Dir {
                known(c.to.disk_id());
            }
            let last = vm.history.as_ref().unwrap();
            assert!(datastore(last.ds_id) && last.hostname.is_some(), "{at}");
        }
        ("mvds", TmCall::Mvds(c)) => {
            assert!(c.image.host.is_none() && vm.disk(c.disk.disk_id().unwrap()).unwrap().save, "{at}");
        }
        ("cpds", TmCall::Cpds(c)) => {
            known(c.disk.disk_id());
            assert!(c.image.host.is_none() && vm.lcm_state.is_some(), "{at}");
            if let Some(id) = c.snapshot {
                assert!(vm.snapshots_of(c.disk.disk_id().unwrap()).iter().any(|s| s.id == id), "{at}");
            }
        }
        ("delete", TmCall::Delete(c)) => assert!(datastore(Some(c.at.dir.ds)), "{at}"),
        ("context", TmCall::Context(c)) => {
            assert_eq!((c.files.len(), c.files[0].name.as_str()), (1, "context.sh"), "{at}");
            assert_eq!(c.iso.disk_id(), vm.context_disk, "{at}");
        }
        ("mkimage", TmCall::Mkimage(c)) => {
            let disk = vm.disk(c.disk.disk_id().unwrap()).unwrap();
            assert_eq!((Some(c.size), disk.format.as_deref()), (disk.size, Some(c.format.as_str())), "{at}");
            assert!(disk.is_volatile(), "{at}");
        }
        ("mkswap", TmCall::Mkswap(c)) => known(c.disk.disk_id()),
        ("snap_create", TmCall::SnapCreate(c))
        | ("snap_create_live", TmCall::SnapCreateLive(c))
        | ("snap_delete", TmCall::SnapDelete(c))
        | ("snap_revert", TmCall::SnapRevert(c)) => {
            let disk = c.disk.disk_id().unwrap();
            assert!(vm.snapshots_of(disk).iter().any(|s| s.id == c.snapshot), "{at}: {:?}", vm.snapshots);
        }
        ("resize", TmCall::Resize(c)) => {
            assert_eq!(vm.disk(c.disk.disk_id().unwrap()).unwrap().size, Some(c.size), "{at}");
        }
        ("premigrate", TmCall::Premigrate(c)) | ("postmigrate", TmCall::Postmigrate(c)) => {
            assert!(c.from != c.to && c.caller.is_none() && c.dir.host.is_none(), "{at}");
            let given = Vm::parse(c.template.as_deref().unwrap()).unwrap();
            assert_eq!((given.id, given.disks.len()), (vm.id, vm.disks.len()), "{at}");
            // The message has the last record only, which is already the target's.
            assert_eq!(given.history.unwrap().hostname.as_deref(), Some(c.to.as_str()), "{at}");
        }
        _ => panic!("{at}: {verb} became {call:?}"),
    }
}

fn client(server: &OnedServer, dir: &Path, deadline: Duration) -> Oned {
    let vars = server.env(dir).map(|(name, value)| (name.into(), value.into()));
    let options = RpcOptions { deadline, ca_file: None, insecure: false };
    Oned::new(&Env::from_vars(vars), Path::new("/nowhere"), Path::new("/ds"), options)
}

#[test]
fn recorded_documents_come_over_http_once_each() {
    let (server, dir) = (OnedServer::start(), tempfile::tempdir().unwrap());
    for name in FOLDERS {
        for call in calls(name).iter().filter(|c| c["vm"].is_string()) {
            let id = parse(name, call).object().unwrap().vm;
            let text = document(name, &call["vm"]);
            server.put_vm(id.into(), &text);
            for (ds, file) in call["datastores"].as_object().unwrap() {
                server.put_datastore(ds.parse().unwrap(), &document(name, file));
            }
            let cloud = client(&server, dir.path(), Duration::from_secs(20));
            let (got, want) = (cloud.vm(id).unwrap(), Vm::parse(text.as_bytes()).unwrap());
            assert_eq!(format!("{got:?}"), format!("{want:?}"));
            assert!(std::sync::Arc::ptr_eq(&got, &cloud.vm(id).unwrap()));
            for (ds, file) in call["datastores"].as_object().unwrap() {
                let got = cloud.datastore(ds.parse().unwrap()).unwrap();
                let want = DatastoreDoc::parse(document(name, file).as_bytes(), Path::new("/ds")).unwrap();
                assert_eq!(format!("{got:?}"), format!("{want:?}"));
                cloud.datastore(ds.parse().unwrap()).unwrap();
            }
            let pool = cloud.datastores().unwrap();
            assert!(pool.bad.is_empty() && pool.docs.iter().any(|d| d.id == 101));
            cloud.datastores().unwrap();
            let mut asked = server.calls();
            let all = asked.len();
            asked.dedup();
            assert_eq!(
                (all, asked.len()),
                (2 + call["datastores"].as_object().unwrap().len(), all),
                "{asked:?}"
            );
        }
    }
}

#[test]
fn other_objects_and_words_that_are_not_ascii() {
    let (server, dir) = (OnedServer::start(), tempfile::tempdir().unwrap());
    server.put(
        "one.image.info",
        4,
        "<IMAGE><ID>4</ID><SOURCE>/x/größe &amp; 数</SOURCE><SIZE></SIZE></IMAGE>",
    );
    server.put(
        "one.hostpool.info",
        -1,
        "<HOST_POOL><HOST><ID>0</ID><NAME>n1</NAME><STATE>3</STATE></HOST></HOST_POOL>",
    );
    server.put_vm(9, "<VM><ID>8</ID></VM>");
    let cloud = client(&server, dir.path(), Duration::from_secs(20));
    let image = cloud.image(4).unwrap();
    assert_eq!((image.source.as_deref(), image.size), (Some("/x/größe & 数"), None));
    assert!(!cloud.hosts().unwrap()[0].is_usable());
    let error = cloud.vm(9).unwrap_err();
    assert!(error.class() == Class::Remote && error.to_string().contains("of id 8, expected 9"), "{error}");
}

#[test]
fn an_oned_that_misbehaves_ends_in_one_line() {
    let (server, dir) = (OnedServer::start(), tempfile::tempdir().unwrap());
    server.put_vm(1, "<VM><ID>1</ID></VM>");
    let billion = "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"aaaaaaaa\"><!ENTITY b \"&a;&a;&a;\">]><methodResponse/>";
    let echo = format!("no such user {SESSION}\nERROR: 1 forged");
    for (manner, class, want) in [
        (Manner::Silent, Class::Timeout, "did not answer one.vm.info within"),
        (Manner::Drips, Class::Timeout, "did not answer"),
        (Manner::Endless, Class::Remote, "larger than"),
        (Manner::Closes, Class::Remote, "one.vm.info"),
        (Manner::Cuts, Class::Remote, "one.vm.info"),
        (Manner::Fault, Class::Remote, "Method not defined"),
        (Manner::Refuses(0x100, echo), Class::Refused, "no such user"),
        (Manner::Refuses(0x200, "Not authorized".into()), Class::Refused, "(code 0x0200)"),
        (Manner::Refuses(0x400, "Error getting VM".into()), Class::NotFound, "Error getting VM"),
        (Manner::Refuses(0x2000, "x".repeat(1 << 20)), Class::Remote, "xxx"),
        (Manner::Says(502, "<html>Bad gateway</html>".into()), Class::Remote, "HTTP status 502"),
        (Manner::Says(302, String::new()), Class::Remote, "HTTP status 302"),
        (Manner::Says(200, "<html>Hello</html>".into()), Class::Remote, "expected methodResponse"),
        (Manner::Says(200, String::new()), Class::Remote, "empty"),
        (Manner::Says(200, "hello".into()), Class::Remote, "neither XML nor base64"),
        (Manner::Says(200, billion.into()), Class::Remote, "DOCTYPE"),
    ] {
        server.behave(manner.clone());
        let cloud = client(
            &server,
            dir.path(),
            Duration::from_millis(if want.contains("did not") { 300 } else { 20_000 }),
        );
        let start = Instant::now();
        let error = cloud.vm(1).expect_err(want);
        let text = error.to_string();
        assert!(text.contains(want), "{manner:?}: {text}");
        assert_eq!(error.class(), class, "{manner:?}: {text}");
        assert!(!text.contains('\n') && text.len() < 500, "{text}");
        assert!(!format!("{text} {error:?}").contains("s3cret"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(15), "{manner:?}: {:?}", start.elapsed());
    }
    server.behave(Manner::Answers);
    assert_eq!(client(&server, dir.path(), Duration::from_secs(20)).vm(1).unwrap().id, 1);
}

#[test]
fn wrong_credentials_and_nobody_there() {
    let (server, dir) = (OnedServer::start(), tempfile::tempdir().unwrap());
    server.put_vm(1, "<VM><ID>1</ID></VM>");
    let cloud = client(&server, dir.path(), Duration::from_secs(20));
    std::fs::write(dir.path().join("one_auth"), "oneadmin:wr0ngpass\n").unwrap();
    let error = cloud.vm(1).unwrap_err();
    assert!(
        matches!(&error, OneError::OnedRefused { code: 0x100, .. }) && error.class() == Class::Refused,
        "{error}"
    );
    assert!(!format!("{error} {error:?}").contains("wr0ngpass"), "{error}");
    let cloud = client(&server, dir.path(), Duration::from_secs(20));
    drop(server);
    let error = cloud.vm(1).unwrap_err();
    assert!(error.class() == Class::Remote && error.to_string().contains("127.0.0.1"), "{error}");
}
