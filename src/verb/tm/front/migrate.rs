//! Live migration. Only the driver of the system datastore is called by oned; it hands the call on to the
//! other drivers of the VM's disks, whose failures are ours (D10, D11). Contract 3.8.

use super::super::op::{Delete, Op};
use super::{At, Front};
use crate::one::{Migrate, Vm, VmDir};
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::{Context as _, Result};

pub(super) fn pre(front: &Front<'_>, m: &Migrate) -> Result<()> {
    if m.from == m.to { Ok(()) } else { others(front, m) }
}

/// After a migration to another system datastore the source's directory goes.
pub(super) fn post(front: &Front<'_>, m: &Migrate) -> Result<()> {
    // A template on stdin has the last record only.
    let before = match m.caller {
        None => front.cloud.vm(m.object.vm)?.previous.as_ref().and_then(|h| h.ds_id),
        Some(_) => None,
    };
    let now = m.dir.dir.ds;
    match before.filter(|ds| *ds != now) {
        Some(ds) => {
            let dir = VmDir { ds, ..m.dir.dir.clone() };
            let at = At { host: Some(&m.from), dir: &dir, local: false };
            let path = dir.path().to_string_lossy().into_owned();
            front.ask(&at, &Op::Delete(Delete { path }))?;
        }
        None if m.from == m.to => return Ok(()),
        None => {}
    }
    others(front, m)
}

pub(super) fn fail(front: &Front<'_>, m: &Migrate) -> Result<()> {
    others(front, m)
}

/// The other drivers of the VM's disks, each once. Who was called by another driver calls nobody.
pub(super) fn others(front: &Front<'_>, m: &Migrate) -> Result<()> {
    if m.caller.is_some() {
        return Ok(());
    }
    let given = m.template.as_deref().map(Vm::parse).transpose()?;
    let asked = if given.is_none() { Some(front.cloud.vm(m.object.vm)?) } else { None };
    let Some(vm) = given.as_ref().or(asked.as_deref()) else { return Ok(()) };
    let mut called = vec![front.name];
    for tm in vm.disks.iter().filter_map(|d| d.tm_mad.as_deref()) {
        if called.contains(&tm) {
            continue;
        }
        called.push(tm);
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"_-".contains(&c);
        if !tm.bytes().all(plain) || tm.starts_with('-') {
            return Err(refuse(
                Class::Usage,
                format!("TM_MAD {tm:?} in the VM document is no driver's name"),
            ));
        }
        (front.other)(tm, m).with_context(|| format!("calling driver {tm} for its disks"))?;
    }
    Ok(())
}
