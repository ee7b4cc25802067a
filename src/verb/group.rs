//! Volumes of a group at work: found by their names, leased with all that lies in one pool with them, made
//! and given their names. Datastore and transfer-manager verbs share it.

use super::{Ctx, fill, hold, refuse};
use crate::data::{self, Copied, Planned};
use crate::engine::{Access, Handover, Kind, Name, Object, Place, PoolUse, Spec};
use crate::lock::{Mode, SlabLease};
use crate::one::{Volume, volume};
use crate::sdm::event::What;
use crate::sdm::plan::{How, Plan};
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sdm::{Domain, Job, Work};
use crate::sys::effect::only_looks;
use crate::sys::{Bytes, Class};
use anyhow::{Context as _, Result};
use std::fs::File;

/// The group of one datastore, open.
pub(super) struct Group<'a> {
    pub ctx: &'a Ctx<'a>,
    pub job: &'a Job,
    pub domain: Domain,
    ds: i64,
}

/// A staged volume, and its pool when it is the first in it.
pub(super) struct Staged {
    pub slab: Slab,
    pool: Option<Slab>,
    /// It lies in a pool that was there before.
    shares: bool,
}

pub(super) fn name(v: &Volume) -> Result<Name> {
    Ok(Name::parse(v.as_str())?)
}

pub(super) fn pool(v: &Volume) -> Result<Name> {
    Ok(Name::parse(v.pool())?)
}

/// Leases in two groups, or one: of two the one with the smaller number first.
pub(super) fn lease_two(mut wanted: [(&Group<'_>, &Volume, Mode); 2]) -> Result<Vec<SlabLease>> {
    wanted.sort_by_key(|(g, ..)| g.ds);
    let [one, two] = wanted.map(|(g, v, mode)| (g, (v, mode)));
    if one.0.ds == two.0.ds {
        return one.0.lease(&[one.1, two.1]);
    }
    let mut leases = one.0.lease(&[one.1])?;
    leases.extend(two.0.lease(&[two.1])?);
    Ok(leases)
}

impl<'a> Group<'a> {
    pub fn open(ctx: &'a Ctx<'a>, job: &'a Job, ds: i64) -> Result<Group<'a>> {
        let domain = (ctx.open)(&volume::group(ds), ds).with_context(|| format!("opening datastore {ds}"))?;
        Ok(Group { ctx, job, domain, ds })
    }

    pub fn look(&self, name: &Name) -> Result<Option<Object>> {
        Ok(self.domain.engine.look(&Place::Public(name.clone()))?)
    }

    pub fn there(&self, v: &Volume) -> Result<Object> {
        let missing = || refuse(Class::NotFound, format!("volume {v} does not exist"));
        self.look(&name(v)?)?.filter(|o| o.kind == Kind::File).ok_or_else(missing)
    }

    fn listed(&self, is: impl Fn(&str) -> bool) -> Result<Vec<Name>> {
        let all = self.domain.engine.list(None)?.into_iter().filter_map(|o| match o.place {
            Place::Public(name) if is(name.as_str()) => Some(name),
            _ => None,
        });
        Ok(all.collect())
    }

    /// A volume and what was made of it.
    pub fn parts(&self, v: &Volume) -> Result<Vec<Name>> {
        Ok([vec![name(v)?], self.listed(|n| v.is_made_of(n))?].concat())
    }

    /// All that lies in a volume's pool.
    pub fn in_pool(&self, v: &Volume) -> Result<Vec<Name>> {
        self.listed(|n| v.shares_pool(n))
    }

    /// A volume, what was made of it, and its pool when nothing else lies in it, in the order in which they go.
    pub fn whole(&self, v: &Volume) -> Result<Vec<Name>> {
        let mut out = self.parts(v)?;
        if self.in_pool(v)?.iter().all(|n| out.contains(n)) {
            out.push(pool(v)?);
        }
        Ok(out)
    }

    /// Leases: what shares a pool is one slab. What dead jobs left on it is settled.
    pub fn lease(&self, wanted: &[(&Volume, Mode)]) -> Result<Vec<SlabLease>> {
        let slabs: Result<Vec<(Name, Mode)>> =
            wanted.iter().map(|(v, m)| Ok((Name::parse(v.slab())?, *m))).collect();
        let slabs = slabs?;
        let names: Vec<(&Name, Mode)> = slabs.iter().map(|(n, m)| (n, *m)).collect();
        let touched =
            |n: &Name| wanted.iter().any(|(v, _)| v.shares_pool(n.as_str()) || n.as_str() == v.pool());
        hold::lease_of(&self.domain, self.job, &names, &touched, None)
    }

    /// Refuses when another host has one of these, or a machine of this host has it open.
    pub fn not_in_use(&self, names: &[Name]) -> Result<()> {
        self.not_elsewhere(names)?;
        let active: Vec<Name> = names.iter().filter(|n| self.is_active(n)).cloned().collect();
        hold::not_in_use(&self.domain, &active)
    }

    fn not_elsewhere(&self, names: &[Name]) -> Result<()> {
        if let Some((name, by)) = self.domain.engine.used_elsewhere(names)? {
            let text = format!("{name} belongs to a VM on {by}; power it off or detach the image first");
            return Err(refuse(Class::InUse, text));
        }
        Ok(())
    }

    /// Whether a volume has a device here; of others no machine here can be a user.
    fn is_active(&self, name: &Name) -> bool {
        let group = volume::group(self.ds);
        // Where there are no devices at all, everything can be read as it is.
        !group.exists() || group.join(name.as_str()).exists()
    }

    /// The device of a volume for a machine of this host, made if need be.
    pub fn attach(&self, name: &Name, access: Access) -> Result<()> {
        if let Some(plan) = &self.job.jobs.plan {
            if !self.is_active(name) {
                plan.change(&self.domain, name, How::Attached);
            }
            return Ok(());
        }
        self.domain.engine.attach(&Place::Public(name.clone()), access)?;
        Ok(())
    }

    /// Reads a volume. Where other hosts may want it, this one does not keep it.
    pub fn read<T>(&self, name: &Name, read: impl FnOnce(&File) -> Result<T>) -> Result<T> {
        let at = Place::Public(name.clone());
        let file = fill::open(&self.domain.engine.attach(&at, Access::Read)?.path)?;
        let done = read(&file);
        drop(file);
        if self.domain.header.host.is_none() {
            self.let_go(name, Access::Read);
        }
        done
    }

    /// Copies a volume into a staged one. Its size is the group's to tell, so a plan need not open it.
    pub fn pour(&self, from: &Name, to: &Slab) -> Result<()> {
        self.poured(from, to, |pour| self.read(from, pour))
    }

    /// The same of what a volume was at one moment, which is closed then.
    pub fn pour_moment(&self, of: &Name, moment: Slab, to: &Slab) -> Result<()> {
        let source = moment.file.context("a staged volume has no device")?;
        self.poured(of, to, |pour| pour(&source))
    }

    fn poured(
        &self,
        from: &Name,
        to: &Slab,
        read: impl FnOnce(&dyn Fn(&File) -> Result<Copied>) -> Result<Copied>,
    ) -> Result<()> {
        let target = to.file.as_ref().context("a staged volume has no device")?;
        let watch = self.job.watch();
        if only_looks() {
            let size = self.look(from)?.map(|o| o.size.0);
            let from = format!("{}/{from}", self.domain.place);
            watch.progress.plan(Planned { from, size, data: None, how: "copy".to_owned(), device: None });
            return Ok(());
        }
        let pour = |source: &File| data::pour(source, target, &watch).map_err(Into::into);
        let copied = read(&pour).with_context(|| format!("reading {from}"))?;
        self.job.method(copied.method.as_str());
        Ok(())
    }

    /// No machine of this host needs a volume any more that others may be reading.
    pub fn leave(&self, name: &Name) -> Result<()> {
        if let Some(plan) = &self.job.jobs.plan {
            self.would_detach(plan, std::slice::from_ref(name));
            return Ok(());
        }
        Ok(self.domain.engine.detach(&Place::Public(name.clone()), Access::Share)?)
    }

    /// This host needs these volumes no longer. For who has them exclusively.
    pub fn detach(&self, names: &[Name]) {
        if let Some(plan) = &self.job.jobs.plan {
            return self.would_detach(plan, names);
        }
        for name in names {
            self.let_go(name, Access::Write);
        }
    }

    /// The same for another host to have them, which must be able to rely on it. What this one does not have is
    /// no matter.
    pub fn release(&self, names: &[Name]) -> Result<()> {
        let active: Vec<Name> = names.iter().filter(|n| self.is_active(n)).cloned().collect();
        hold::not_in_use(&self.domain, &active)?;
        if let Some(plan) = &self.job.jobs.plan {
            self.would_detach(plan, &active);
            return Ok(());
        }
        for name in names {
            self.domain.engine.detach(&Place::Public(name.clone()), Access::Write)?;
        }
        Ok(())
    }

    fn would_detach(&self, plan: &Plan, names: &[Name]) {
        for name in names.iter().filter(|n| self.is_active(n)) {
            plan.change(&self.domain, name, How::Detached);
        }
    }

    fn let_go(&self, name: &Name, access: Access) {
        if let Err(e) = self.domain.engine.detach(&Place::Public(name.clone()), access) {
            self.job.tell(What::Warning { text: format!("{name} stays active on this host: {e}") });
        }
    }

    pub fn begin(&self, v: &Volume) -> Result<Work<'_>> {
        self.begin_on(&[v])
    }

    /// What it leaves when it dies is settled by whoever wants any of these next.
    pub fn begin_on(&self, all: &[&Volume]) -> Result<Work<'_>> {
        let targets: Result<Vec<_>> = all.iter().flat_map(|v| [name(v), pool(v)]).collect();
        Ok(Work::begin(&self.domain, self.job, &targets?)?)
    }

    /// A staged volume of its own.
    pub fn thick(work: &mut Work<'_>, size: Bytes) -> Result<Staged> {
        Ok(Staged { slab: work.file(size)?, pool: None, shares: false })
    }

    /// A staged volume for a disk, in its pool or not.
    pub fn stage(
        &self,
        work: &mut Work<'_>,
        leases: &[SlabLease],
        v: &Volume,
        size: Bytes,
        thin: bool,
    ) -> Result<Staged> {
        if thin {
            return self.thin(work, leases, v, size);
        }
        // What it displaces may lie in one.
        let shares = self.look(&pool(v)?)?.is_some();
        Ok(Staged { shares, ..Self::thick(work, size)? })
    }

    pub fn is_thin(&self, v: &Volume) -> Result<bool> {
        Ok(self.domain.engine.is_pooled(&Place::Public(name(v)?))?)
    }

    /// A step of a volume's way to another host while its machine runs.
    pub fn hand_over(&self, v: &Volume, step: Handover) -> Result<()> {
        let thin = self.is_thin(v)?;
        if thin && step == Handover::Keep {
            // It never was another's.
            return Ok(());
        }
        if thin {
            let text = format!(
                "{v} lies in a thin pool, which only one host at a time can have: power the VM off or suspend it to move \
                 it; disks that are made while LVM_THIN_ENABLE of their datastore is NO lie in none; nothing was changed"
            );
            return Err(refuse(Class::Unsupported, text));
        }
        let name = name(v)?;
        if let Some(plan) = &self.job.jobs.plan {
            if step == Handover::Borrow && !self.is_active(&name) {
                plan.change(&self.domain, &name, How::Attached);
            }
            return Ok(());
        }
        Ok(self.domain.engine.hand_over(&Place::Public(name), step)?)
    }

    /// A staged volume in its pool, which is made, or grows by what the volume can take: pools cannot run full.
    pub fn thin(&self, work: &mut Work<'_>, leases: &[SlabLease], v: &Volume, size: Bytes) -> Result<Staged> {
        let pool = pool(v)?;
        if self.look(&pool)?.is_some() {
            self.room(leases, v, size)?;
            let slab = work.slab(&Spec::Thin { pool: Place::Public(pool), size })?;
            return Ok(Staged { slab, pool: None, shares: true });
        }
        if let Some(plan) = &self.job.jobs.plan {
            plan.pool(&self.domain, &pool, size);
        }
        let pool = work.pool(size)?;
        let slab = work.slab(&Spec::Thin { pool: work.place(&pool), size })?;
        Ok(Staged { slab, pool: Some(pool), shares: false })
    }

    /// Makes a pool as large as all that lies in it and so much more.
    pub fn room(&self, leases: &[SlabLease], v: &Volume, more: Bytes) -> Result<()> {
        let mut need = more.0;
        for part in self.in_pool(v)? {
            need += self.look(&part)?.map_or(0, |o| o.size.0);
        }
        let pool = pool(v)?;
        let now = self.look(&pool)?.map_or(0, |o| o.size.0);
        if let Some(plan) = &self.job.jobs.plan {
            return Ok(plan.grows(&self.domain, &pool, Bytes(need.max(now)))?);
        }
        if let Some(lease) = leases.first().filter(|_| need > now) {
            self.domain.engine.resize(lease, &Place::Public(pool), Bytes(need))?;
        }
        Ok(())
    }

    /// Makes a thick volume larger, by a part that reads zero before it is one.
    pub fn grow(
        &self,
        leases: &[SlabLease],
        v: &Volume,
        size: Bytes,
        ready: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (name, now) = (name(v)?, self.there(v)?.size);
        self.not_elsewhere(std::slice::from_ref(&name))?;
        let mut work = self.begin(v)?;
        let part = Self::thick(&mut work, Bytes(size.0.saturating_sub(now.0)))?.slab;
        self.flush(&work, &part, v)?;
        ready()?;
        if let Some(plan) = &self.job.jobs.plan {
            return Ok(plan.grows(&self.domain, &name, size)?);
        }
        if let Some(lease) = leases.first() {
            work.append(part, &name, lease)?;
        }
        Ok(())
    }

    /// Of a write that found no room in its pool the kernel only says that it failed.
    fn flush(&self, work: &Work<'_>, slab: &Slab, v: &Volume) -> Result<()> {
        let full = |p: &PoolUse| p.name == v.pool() && p.data.0 >= p.data.1;
        let flushed = work.flush(slab);
        if flushed.is_err() && self.domain.engine.pools().is_ok_and(|all| all.iter().any(full)) {
            return flushed.with_context(|| format!("pool {} is full; make room in it", v.pool()));
        }
        Ok(flushed?)
    }

    /// The steps by which a staged volume gets its names, its device closed: one that is open stays. What had them
    /// goes, with all that was made of it, and is kept for a while; but not where it would take space in a pool that
    /// nobody sees.
    pub fn steps(&self, work: &mut Work<'_>, staged: Staged, v: &Volume) -> Result<Vec<Step>> {
        let Staged { slab, pool: first, shares } = staged;
        let keep = !shares;
        self.flush(work, &slab, v)?;
        let mut steps = vec![work.step_over(&slab, &name(v)?, keep)?];
        for part in self.parts(v)?.into_iter().skip(1) {
            steps.extend(work.step_bury(&part, keep)?);
        }
        if let Some(slab) = &first {
            steps.push(work.step_over(slab, &pool(v)?, keep)?);
        }
        Ok(steps)
    }
}
