//! One datastore: is it the storage it should be, whose is it, what can it do, do its locks hold.

use super::host::Account;
use super::mounts;
use super::{Finding, PATIENCE, leases};
use crate::cli::admin::{capabilities, stock_verb};
use crate::engine::file::AREA;
use crate::engine::{Capabilities, EngineError, PoolUse, Usage};
use crate::lock::{JobId, LeaseId, LockBackend, LockError, Mode};
use crate::sdm::gc::{self, Action};
use crate::sdm::known::Known;
use crate::sdm::trend::{SOON, Trend};
use crate::sdm::{Domain, Groups, SdmError, group};
use crate::sys::fs::Dir;
use crate::sys::mounts::Mount;
use crate::sys::{self, Bytes, user};
use crate::verb::one_line;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// Less free space than this is worth a word, as is less than 5 %.
const LOW: u64 = 1 << 30;
const NO_GROWTH: &str = "set activation/thin_pool_autoextend_threshold = 100 in /etc/lvm/lvm.conf: pools are as large \
     as what lies in them, and need no growth";
/// Clocks of storage and host may differ by this.
const SKEW: i64 = 60;

/// User and group of a datastore, if it is there.
pub fn owner(path: &Path) -> Option<Account> {
    path.metadata().ok().map(|m| (m.uid(), m.gid()))
}

pub fn hangs(path: &Path) -> Finding {
    let detail =
        format!("no answer within {} s: its storage hangs; nothing else was looked at", PATIENCE.as_secs());
    Finding::bad("mount", path.display(), detail, "look after the server or the device behind it")
}

/// Everything about one datastore. Writes only a staging area in it that is removed again.
pub fn look(
    path: &Path,
    known: Option<&Known>,
    policy: &gc::Policy,
    (table, trend): (&[Mount], &Trend),
    no_watchdog: bool,
) -> Vec<Finding> {
    let place = path.display().to_string();
    let mut out = Vec::new();
    let Ok(meta) = path.metadata() else {
        let remedy = "mount or make it; if the datastore is gone for good, remove its note from datastore/ in paths.state";
        return vec![Finding::bad("mount", place, "the directory does not exist", remedy)];
    };
    if let Some(k) = known.filter(|k| k.mount) {
        let is_mount = path.join("..").metadata().is_ok_and(|up| up.dev() != meta.dev());
        if !is_mount {
            out.push(not_mounted(&place, k));
            return out;
        }
        out.push(Finding::ok("mount", &place, "mounted, as this host remembers it"));
    }
    if let Some(m) = path.canonicalize().ok().and_then(|p| sys::mounts::of(&p, table)) {
        out.extend(mounts::judge(&place, m, mounts::lost_locks().as_deref()));
    }
    let domain = Domain::inspect(path);
    let (finding, domain) = identity(&place, known, domain);
    out.push(finding);
    let Some(domain) = domain else { return out };
    let whose = format!(
        "find out who put it there and move it out of {place}/{AREA}; leases must be one empty file that nobody replaces"
    );
    out.extend(content(&place, &domain, trend, &whose));
    out.extend(ownership(path, &place));
    if domain.usable().is_err() {
        return out;
    }
    if let Ok(Some(locks)) = domain.sanlock() {
        let (found, usable) = leases::look(&place, &locks, no_watchdog);
        out.extend(found);
        if !usable {
            return out;
        }
    }
    out.push(probe(&place, &*domain.locks));
    match capabilities(&domain) {
        Ok(caps) => {
            out.push(able(&place, caps));
            out.extend(skew(path, &place));
        }
        Err(e) => {
            let remedy =
                format!("run as root, or as the owner of {place}, if this account should not write there");
            out.push(Finding::warn("capabilities", &place, one_line(&e), remedy));
        }
    }
    out.push(garbage(&place, gc::plan(&domain, policy)));
    out
}

/// The same of a volume group. Writes nothing.
pub fn look_group(
    groups: &Groups,
    path: &Path,
    known: Option<&Known>,
    policy: &gc::Policy,
    (remotes, trend): (&Path, &Trend),
    no_watchdog: bool,
) -> Vec<Finding> {
    let place = path.display().to_string();
    let (finding, domain) = identity(&place, known, groups.inspect_at(path));
    let mut out = vec![finding];
    if let Some(verb) = stock_verb(remotes) {
        let detail = format!("{} is a stock driver's, which changes groups past our locks", verb.display());
        out.push(Finding::bad("drivers", &place, detail, "`onesdm install --replace lvm`"));
    }
    out.extend(growth(&place, groups.grown_at(group::group_of(path).unwrap_or_default())));
    if let Some(domain) = domain {
        out.extend(content(&place, &domain, trend, "find out who made it, and rename or remove it"));
        out.extend(pools(&place, domain.engine.pools()));
        if let Ok(Some(locks)) = domain.sanlock() {
            let (found, usable) = leases::look(&place, &locks, no_watchdog);
            out.extend(found);
            if !usable {
                return out;
            }
        }
        out.push(garbage(&place, gc::plan(&domain, policy)));
    }
    out
}

/// What a domain holds.
fn content(place: &str, domain: &Domain, trend: &Trend, whose: &str) -> Vec<Finding> {
    let now = jiff::Timestamp::now().as_second();
    let mut out = vec![match domain.engine.usage() {
        Ok(u) => space(place, u, trend.full_in(place, u.used, u.total, now)),
        Err(e) => Finding::bad("space", place, e, "look after the storage"),
    }];
    match domain.engine.strays() {
        Ok(strays) if strays.is_empty() => out.push(Finding::ok("area", place, "holds nothing foreign")),
        Ok(strays) => out.extend(strays.into_iter().map(|s| Finding::bad("area", place, s, whose))),
        Err(e) => out.push(Finding::bad("area", place, e, "run `onesdm check`")),
    }
    out
}

fn not_mounted(place: &str, k: &Known) -> Finding {
    let detail = format!("not mounted; it was when this host first used it ({})", k.since);
    Finding::bad("mount", place, detail, format!("mount {place}"))
}

/// Whether it is the domain it should be; the domain, if it can be looked at.
fn identity(
    place: &str,
    known: Option<&Known>,
    domain: Result<Domain, SdmError>,
) -> (Finding, Option<Domain>) {
    let meant = format!("mount the right storage; if this one is meant, `onesdm domain adopt {place}`");
    let bad = |detail: String, remedy: String| Finding::bad("domain", place, detail, remedy);
    match domain {
        Err(e @ SdmError::NotADomain { .. }) => match known {
            None => (Finding::ok("domain", place, "none yet; the first request makes it one"), None),
            Some(k) => {
                let remedy = format!(
                    "mount the right storage; if it was emptied on purpose, `onesdm domain init {place}`, then `onesdm domain adopt {place}`"
                );
                (bad(format!("domain {} is expected: {e}", k.domain), remedy), None)
            }
        },
        Err(e) => (bad(e.to_string(), "restore .sdm/domain.json from a backup".to_owned()), None),
        Ok(d) => {
            let finding = match (d.usable(), known) {
                (Err(e @ SdmError::Copied { .. }), _) => {
                    let remedy = format!(
                        "if the original is gone: `onesdm domain adopt {place}`; if both live on: `onesdm domain adopt --new-id {place}`"
                    );
                    bad(e.to_string(), remedy)
                }
                (Err(e), _) => {
                    bad(e.to_string(), "use the version of onesdm that the other hosts use".to_owned())
                }
                (Ok(()), Some(k)) if k.domain != d.header.id => {
                    bad(format!("is domain {}, but {} is expected", d.header.id, k.domain), meant)
                }
                (Ok(()), _) => {
                    Finding::ok("domain", place, format!("{}, format {}", d.header.id, d.header.format))
                }
            };
            (finding, Some(d))
        }
    }
}

/// Everything of ours must be usable by the account that verbs act as: the directory's owner.
fn ownership(path: &Path, place: &str) -> Vec<Finding> {
    let entries = || -> std::io::Result<Vec<(String, Account, u32)>> {
        let root = Dir::open(path)?;
        let area = root.sub(Path::new(AREA))?;
        let mut out = Vec::new();
        for (dir, name, shown) in [
            (&root, ".", ".".to_owned()),
            (&area, ".", AREA.to_owned()),
            (&area, "new", format!("{AREA}/new")),
            (&area, "del", format!("{AREA}/del")),
            (&area, "done", format!("{AREA}/done")),
            (&area, "leases", format!("{AREA}/leases")),
            (&area, "domain.json", format!("{AREA}/domain.json")),
        ] {
            if let Some(e) = dir.entry(OsStr::new(name))? {
                out.push((shown, (e.uid, e.gid), e.mode));
            }
        }
        Ok(out)
    };
    match entries() {
        Err(e) => vec![Finding::bad("owner", place, e, "give this account access, or run as the owner")],
        Ok(entries) => {
            let mut out = whose(place, &entries);
            let owner = entries.first().map_or(0, |e| e.1.0);
            if user::uid() != 0 && user::uid() != owner && !user::may_write(path) {
                let detail = format!("belongs to user {owner}; user {} may not write it", user::uid());
                out.push(Finding::warn("owner", place, detail, "run verbs as its owner, or as root"));
            }
            out
        }
    }
}

/// `entries`: name, owner and mode of the datastore, then of our own things in it.
fn whose(place: &str, entries: &[(String, Account, u32)]) -> Vec<Finding> {
    let Some((_, owner, mode)) = entries.first() else { return Vec::new() };
    let mut out = Vec::new();
    for (name, who, mode) in entries {
        if who.0 != owner.0 {
            let detail = format!("{name} belongs to user {}, the datastore to {}", who.0, owner.0);
            out.push(Finding::bad(
                "owner",
                place,
                detail,
                format!("chown -R {}:{} {place}/{AREA}", owner.0, owner.1),
            ));
        }
        if mode & 0o002 != 0 {
            let detail = format!("everybody may write {name} (mode {mode:04o})");
            out.push(Finding::bad("owner", place, detail, format!("chmod o-w {place}/{name}")));
        }
    }
    if out.is_empty() {
        out.push(Finding::ok("owner", place, format!("{}:{}, mode {mode:04o}", owner.0, owner.1)));
    }
    out
}

/// Takes a lease of its own twice: the second must be refused, and must be had once the first is gone.
fn probe(place: &str, locks: &dyn LockBackend) -> Finding {
    let id = LeaseId::Probe(JobId::generate().to_string());
    let first = match locks.try_acquire(&id, Mode::Exclusive) {
        Err(e) => {
            return Finding::bad(
                "exclusion",
                place,
                e,
                "let this account write .sdm/leases, on a file system with locks",
            );
        }
        Ok(held) => held,
    };
    let second = locks.try_acquire(&id, Mode::Exclusive);
    let seen = locks.is_held(&id);
    drop(first);
    let third = locks.try_acquire(&id, Mode::Exclusive);
    if matches!(second, Err(LockError::Busy(_))) && matches!(seen, Ok(true)) && third.is_ok() {
        return Finding::ok("exclusion", place, "a lease is refused while it is held, on this host");
    }
    let detail = format!(
        "locks do not exclude: held {seen:?}, taken again {:?}, after release {:?}",
        second.is_ok(),
        third.is_ok()
    );
    Finding::bad(
        "exclusion",
        place,
        detail,
        "let nothing change this datastore; use a file system with working locks",
    )
}

fn able(place: &str, caps: Capabilities) -> Finding {
    let list = [
        (caps.reflink, "no reflink: copies move every byte"),
        (caps.sparse, "no sparse files: images take their full size"),
        (caps.punch_hole, "no punching of holes: freed space stays taken"),
        (caps.direct, "no unbuffered writes"),
    ];
    let lacks: Vec<&str> = list.into_iter().filter(|(can, _)| !can).map(|(_, lack)| lack).collect();
    if !caps.noreplace && !caps.exchange {
        let detail =
            format!("renames can neither refuse nor swap, so links stand in for them; {}", lacks.join("; "));
        return Finding::warn(
            "capabilities",
            place,
            detail,
            "use a local file system, or NFS from a newer kernel, if that matters",
        );
    }
    let detail = if lacks.is_empty() { "all that is used".to_owned() } else { lacks.join("; ") };
    Finding::ok("capabilities", place, detail)
}

/// The probe just changed `.sdm/new`: what does the storage's clock say?
fn skew(path: &Path, place: &str) -> Option<Finding> {
    let area = Dir::open(path).and_then(|d| d.sub(Path::new(AREA))).ok()?;
    let then = area.entry(OsStr::new("new")).ok()??.changed;
    let late = jiff::Timestamp::now().as_second() - then;
    (late.abs() > SKEW).then(|| {
        let detail =
            format!("its clock differs from this host's by {late} s: kept images go too early or too late");
        Finding::warn("clock", place, detail, "run chrony on both")
    })
}

fn space(place: &str, u: Usage, full_in: Option<Duration>) -> Finding {
    let percent = u128::from(u.free.0) * 100 / u128::from(u.total.0.max(1));
    let mut text = format!("{} free of {} ({percent} %)", u.free, u.total);
    if let Some(left) = full_in {
        text += &format!(", full in {} hours if it goes on as in the last day", left.as_secs() / 3600);
    }
    if percent < 5 || u.free.0 < LOW || full_in.is_some_and(|left| left < SOON) {
        let remedy =
            format!("`onesdm gc {place}`, with --short to give up kept images; remove images, or grow it");
        return Finding::warn("space", place, text, remedy);
    }
    Finding::ok("space", place, text)
}

fn growth(place: &str, at: Result<Option<u64>, SdmError>) -> Option<Finding> {
    match at {
        Ok(None) => None,
        Ok(Some(percent)) => {
            let detail = format!("dmeventd makes thin pools larger from {percent} % on, past our locks");
            Some(Finding::bad("growth", place, detail, NO_GROWTH))
        }
        Err(e) => {
            let detail = format!("whether dmeventd makes thin pools larger cannot be seen: {e}");
            Some(Finding::warn("growth", place, detail, NO_GROWTH))
        }
    }
}

/// Those that are active on this host.
fn pools(place: &str, pools: Result<Vec<PoolUse>, EngineError>) -> Vec<Finding> {
    let pools = match pools {
        Ok(pools) => pools,
        Err(e) => {
            let detail = format!("how full its pools are cannot be seen: {e}");
            let remedy = "put the package's sudoers file into /etc/sudoers.d/onesdm";
            return vec![Finding::warn("pools", place, detail, remedy)];
        }
    };
    let judge = |p: &PoolUse| {
        let object = format!("{place}/{}", p.name);
        if let Some(trouble) = &p.trouble {
            let remedy = "stop what uses it, then `lvconvert --repair`; the kernel's log has more";
            return Some(Finding::bad("pools", object, trouble, remedy));
        }
        let (used, size) = p.tables;
        let detail = format!(
            "{used} of {size} of the tables of its volumes are used; without any left it takes no writes"
        );
        let remedy = "remove snapshots of its disks, or save them as images of their own";
        (used.0 > size.0 / 5 * 4).then(|| Finding::warn("pools", object, detail, remedy))
    };
    let found: Vec<Finding> = pools.iter().filter_map(judge).collect();
    if found.is_empty() {
        return vec![Finding::ok("pools", place, format!("{} active here, all well", pools.len()))];
    }
    found
}

fn garbage(place: &str, plan: Result<Vec<gc::Finding>, SdmError>) -> Finding {
    let plan = match plan {
        Err(e) => return Finding::bad("garbage", place, e, format!("onesdm check {place}")),
        Ok(plan) => plan,
    };
    let sum = |stays: bool| {
        let of = plan.iter().filter(|f| (f.action == Action::Stay) == stays);
        of.fold((0, Bytes(0)), |(n, b), f| (n + 1, Bytes(b.0.saturating_add(f.bytes.0))))
    };
    let ((go, bytes), (stay, kept)) = (sum(false), sum(true));
    if go > 0 {
        let detail = format!("{go} things wait for the collector, {bytes}; {stay} stay, {kept}");
        return Finding::warn("garbage", place, detail, format!("onesdm gc {place}"));
    }
    Finding::ok("garbage", place, format!("none; {stay} things are kept or at work, {kept}"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::lock::{Held, MemLocks};

    #[test]
    fn space_is_low_by_share_or_by_size() {
        let gib = |n: u64| Bytes(n << 30);
        for (free, total, verdict) in [
            (gib(10), gib(100), Verdict::Ok),
            (gib(4), gib(100), Verdict::Warn),
            (Bytes(LOW - 1), gib(2), Verdict::Warn),
            (Bytes(0), Bytes(0), Verdict::Warn),
            (Bytes(u64::MAX), Bytes(u64::MAX), Verdict::Ok),
        ] {
            assert_eq!(
                space("/x", Usage { total, free, used: Bytes(0) }, None).verdict,
                verdict,
                "{free} of {total}"
            );
        }
    }

    #[test]
    fn what_fills_soon_or_takes_no_writes_is_told() {
        let u = Usage { total: Bytes(100 << 30), free: Bytes(50 << 30), used: Bytes(50 << 30) };
        let hours = |n: u64| Some(Duration::from_secs(n * 3600));
        assert_eq!(space("/x", u, hours(100)).verdict, Verdict::Ok);
        let soon = space("/x", u, hours(10));
        assert!(soon.verdict == Verdict::Warn && soon.detail.contains("full in 10 hours"), "{soon:?}");
        let pool = |used, trouble: Option<&str>| PoolUse {
            name: "p".to_owned(),
            data: (Bytes(100), Bytes(100)),
            tables: (Bytes(used), Bytes(100)),
            trouble: trouble.map(str::to_owned),
        };
        for (pool, verdict) in [
            (pool(10, None), Verdict::Ok),
            (pool(90, None), Verdict::Warn),
            (pool(10, Some("it takes no writes")), Verdict::Bad),
        ] {
            assert_eq!(pools("/dev/x", Ok(vec![pool]))[0].verdict, verdict);
        }
        assert_eq!(growth("/dev/x", Ok(None)), None);
        let found = growth("/dev/x", Ok(Some(70))).unwrap();
        assert!(found.verdict == Verdict::Bad && found.detail.contains("70 %"), "{found:?}");
    }

    #[test]
    fn what_is_ours_belongs_to_the_datastores_owner() {
        let e = |name: &str, uid, mode| (name.to_owned(), (uid, uid), mode);
        for (entries, verdict) in [
            (vec![e(".", 5, 0o750), e(".sdm", 5, 0o770)], Verdict::Ok),
            (vec![e(".", 5, 0o750), e(".sdm", 0, 0o770)], Verdict::Bad),
            (vec![e(".", 5, 0o777)], Verdict::Bad),
            (vec![e(".", 5, 0o755), e(".sdm/leases", 5, 0o666)], Verdict::Bad),
        ] {
            assert_eq!(whose("/x", &entries)[0].verdict, verdict, "{entries:?}");
        }
    }

    #[test]
    fn capabilities_that_change_the_way_of_working_are_told() {
        let all = Capabilities {
            exchange: true,
            noreplace: true,
            reflink: true,
            sparse: true,
            punch_hole: true,
            direct: true,
            directories: true,
            zero_initialised: true,
        };
        assert_eq!(able("/x", all).detail, "all that is used");
        assert!(able("/x", Capabilities { reflink: false, ..all }).detail.contains("reflink"));
        assert_eq!(
            able("/x", Capabilities { exchange: false, noreplace: false, ..all }).verdict,
            Verdict::Warn
        );
    }

    /// A file system whose locks are granted to everybody.
    #[derive(Debug)]
    struct Nothing;
    impl Held for Nothing {
        fn still_held(&self) -> Result<(), LockError> {
            Ok(())
        }
    }
    impl LockBackend for Nothing {
        fn name(&self) -> &'static str {
            "nothing"
        }
        fn try_acquire(&self, _: &LeaseId, _: Mode) -> Result<Box<dyn Held>, LockError> {
            Ok(Box::new(Nothing))
        }
        fn is_held(&self, _: &LeaseId) -> Result<bool, LockError> {
            Ok(false)
        }
    }

    #[test]
    fn locks_that_do_not_exclude_are_found_out() {
        assert_eq!(probe("/x", &MemLocks::default()).verdict, Verdict::Ok);
        assert_eq!(probe("/x", &Nothing).verdict, Verdict::Bad);
    }
}
