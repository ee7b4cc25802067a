//! Stock and ours on one cloud, call by call: the whole life of a VM (`tm::life`) where each call is made by the
//! operator's own stock driver or by ours, as a seed says; after each, content and tree are what the contract says.
//!
//! ```sh
//! ONESDM_STOCK=/opt/one/var/remotes cargo test --features failpoints --test it -- --ignored mixed::
//! ```
//!
//! `ONESDM_STOCK` is `var/remotes` of an OpenNebula that was installed into a directory of its own (`ONE_LOCATION`), on
//! a machine that has what its drivers need (ruby with the gems of its command line, rsync). `ONESDM_SEED` is the first of
//! `ONESDM_LIVES` seeds.

use crate::hosts::Cloud;
use crate::oned_server::OnedServer;
use crate::runner::{self, Caller, Kind, Plain, Vm};
use crate::tm_kill::Dice;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

/// The operator's own drivers, and what they need around them.
struct Stock {
    remotes: PathBuf,
    env: Vec<String>,
    /// Answers what they ask.
    oned: &'static OnedServer,
}

/// `ONESDM_STOCK`, and the `ONE_LOCATION` that it is in.
fn stock_remotes() -> (PathBuf, PathBuf) {
    let what = "ONESDM_STOCK is to be var/remotes of an OpenNebula in a directory of its own";
    let remotes = PathBuf::from(std::env::var_os("ONESDM_STOCK").expect(what)).canonicalize().expect(what);
    let home = remotes.ancestors().nth(2).unwrap().to_owned();
    assert!(remotes.join("tm/shared/clone").exists() && home.join("lib/ruby").is_dir(), "{what}");
    (remotes, home)
}

impl Stock {
    /// On the front-end of a cloud.
    fn on(cloud: &Cloud, remotes: &Path, home: &Path) -> Stock {
        // It lives as long as the process: its address is to be reached from the front-end alone.
        let (oned, vars) = cloud.inside("fe", || {
            let oned: &OnedServer = Box::leak(Box::new(OnedServer::start()));
            (oned, oned.env(Path::new("/root")))
        });
        let mut env: Vec<String> = vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let home = home.display();
        env.extend([
            "HOME=/root".to_owned(),
            format!("PATH={home}/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            format!("ONE_LOCATION={home}"),
            format!("RUBYLIB={home}/lib/ruby"),
            format!("DS_DIR={}", runner::STORES),
        ]);
        Stock { remotes: remotes.to_owned(), env, oned }
    }

    fn tell(&self, vm: &Vm<'_>) {
        self.oned.put_vm(vm.id.into(), &vm.document());
        for (id, kind) in [(100, 0), (101, 1), (102, 1)] {
            let tm = vm.driver;
            self.oned.put_datastore(
                id,
                &format!(
                    "<DATASTORE><ID>{id}</ID><NAME>d{id}</NAME><DS_MAD>fs</DS_MAD><TM_MAD>{tm}</TM_MAD><BASE_PATH>{}/{id}\
                     </BASE_PATH><TYPE>{kind}</TYPE><TEMPLATE><TM_MAD>{tm}</TM_MAD></TEMPLATE></DATASTORE>",
                    runner::STORES
                ),
            );
        }
        for (n, (name, (kind, content))) in vm.images.iter().enumerate() {
            let (format, size, source) = (kind.name(), content.len() / runner::MIB, runner::source(name));
            self.oned.put(
                "one.image.info",
                i64::try_from(n).unwrap(),
                &format!(
                    "<IMAGE><ID>{n}</ID><NAME>{name}</NAME><PERSISTENT>0</PERSISTENT><DATASTORE_ID>100</DATASTORE_ID>\
                     <DATASTORE>d100</DATASTORE><MODTIME>0</MODTIME><FORMAT>{format}</FORMAT><SIZE>{size}</SIZE>\
                     <SOURCE>{source}</SOURCE></IMAGE>"
                ),
            );
        }
    }
}

/// Stock or ours, as it comes.
struct Mixed {
    stock: Stock,
    dice: RefCell<Dice>,
    /// Calls of stock and of ours, by verb.
    calls: RefCell<BTreeMap<String, [usize; 2]>>,
}

/// What stock drivers get wrong by themselves, so that ours has to make the call. The manual names each.
fn defect(vm: &Vm<'_>, verb: &str, args: &[String]) -> Option<&'static str> {
    let (dir, id) = args.iter().find_map(|a| a.split_once("/disk."))?;
    if verb == "delete" {
        let snaps = format!("{}/disk.{id}.snap", dir.split_once(':')?.1);
        let has_snaps = vm.cloud.inside(vm.host, || Path::new(&snaps).exists());
        return has_snaps.then_some("a disk's snapshots stay until its VM's directory goes");
    }
    let disk = vm.disks.get(&id.parse().ok()?)?;
    let (kind, persistent) = (disk.kind, disk.persistent);
    match verb {
        "snap_revert" if kind == Kind::Raw && persistent && !vm.copies => {
            Some("the link to the image becomes a file of its own")
        }
        "mvds" if kind == Kind::Raw && vm.driver == "local" && !disk.snaps.is_empty() => {
            Some("snapshots stay behind")
        }
        "snap_create" if disk.active.is_some() => {
            let before = args[1].parse::<u32>().ok()?.checked_sub(1)?;
            (!disk.snaps.contains_key(&before))
                .then_some("a number after one that was left out is no layer's")
        }
        "resize" if vm.copies && disk.active.is_some() && !disk.snaps.is_empty() => {
            Some("the layer below is looked for beside the link")
        }
        _ => None,
    }
}

impl Caller for Mixed {
    fn call(&self, vm: &Vm<'_>, verb: &str, args: &[String]) -> Output {
        let why = defect(vm, verb, args);
        let ours = self.dice.borrow_mut().below(2) == 0 || why.is_some();
        println!("{} {verb} {args:?} {}", if ours { "ours " } else { "stock" }, why.unwrap_or_default());
        self.calls.borrow_mut().entry(verb.to_owned()).or_default()[usize::from(ours)] += 1;
        if ours {
            return Plain.call(vm, verb, args);
        }
        self.stock.tell(vm);
        let stock = (&self.stock.env[..], &*self.stock.remotes);
        let words = runner::words_in(vm.cloud, stock, (vm.driver, verb), &vm.stdin(verb), args);
        runner::output(vm.cloud, &words)
    }
}

fn lives(driver: &'static str, kind: Kind) {
    let (remotes, home) = stock_remotes();
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect(name));
    let first = number("ONESDM_SEED").unwrap_or(1);
    for seed in first..first + number("ONESDM_LIVES").unwrap_or(3) {
        let cloud = runner::cloud_for_with(driver, Some(&home));
        let stock = Stock::on(&cloud, &remotes, &home);
        let mixed = Mixed {
            stock,
            dice: RefCell::new(Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
            calls: RefCell::default(),
        };
        let mut vm = Vm::new(&cloud, driver, 7);
        vm.caller = &mixed;
        crate::tm::life(&mut vm, kind, 1);
        println!(
            "{driver}, {}, seed {seed}, calls of stock and of ours: {:?}",
            kind.name(),
            mixed.calls.borrow()
        );
    }
}

#[test]
#[ignore = "needs an operator's stock drivers: ONESDM_STOCK=DIR, as the head of tests/it/mixed.rs says"]
fn raw_disks_on_shared() {
    lives("shared", Kind::Raw);
}

#[test]
#[ignore = "needs an operator's stock drivers: ONESDM_STOCK=DIR, as the head of tests/it/mixed.rs says"]
fn qcow2_disks_on_shared() {
    lives("qcow2", Kind::Qcow2);
}

#[test]
#[ignore = "needs an operator's stock drivers: ONESDM_STOCK=DIR, as the head of tests/it/mixed.rs says"]
fn raw_disks_on_ssh() {
    lives("ssh", Kind::Raw);
}

#[test]
#[ignore = "needs an operator's stock drivers: ONESDM_STOCK=DIR, as the head of tests/it/mixed.rs says"]
fn raw_disks_on_local() {
    lives("local", Kind::Raw);
}

#[test]
#[ignore = "needs an operator's stock drivers: ONESDM_STOCK=DIR, as the head of tests/it/mixed.rs says"]
fn qcow2_disks_on_local() {
    lives("local", Kind::Qcow2);
}

#[test]
#[ignore = "needs an operator's stock drivers: ONESDM_STOCK=DIR, as the head of tests/it/mixed.rs says"]
fn qcow2_disks_on_ssh() {
    lives("ssh", Kind::Qcow2);
}
