//! What every engine must do. Called by each engine's tests; others' engines run the same suite.

use super::{Access, Bytes, Engine, EngineError, Grave, Identity, Kind, Name, Place, Record, Spec};
use crate::lock::{self, DomainLock, JobId, MemLocks, OwnerLease};
use crate::sys::Cancel;
use std::io::{BufRead as _, Read as _, Write as _};
use std::time::Duration;

/// One engine, empty, with a job on it.
struct Case {
    engine: Box<dyn Engine>,
    locks: MemLocks,
    owner: OwnerLease,
}

type Rule = (&'static str, fn(&Case) -> Outcome);
type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

impl Case {
    fn new(engine: Box<dyn Engine>) -> Result<Case, Box<dyn std::error::Error>> {
        let locks = MemLocks::default();
        engine.prepare()?;
        engine.init(b"header")?;
        let owner = lock::owner_lease(&locks, JobId::generate())?;
        engine.begin(&owner)?;
        Ok(Case { engine, locks, owner })
    }

    fn lock(&self) -> Result<DomainLock, lock::LockError> {
        lock::domain_lock(&self.locks, Duration::ZERO, &Cancel::default())
    }

    fn grave(&self, n: u32) -> Grave {
        Grave { job: self.owner.job(), n, keep: false }
    }

    /// A staged slab with this content.
    fn slab(&self, n: u32, content: &str) -> Result<Identity, Box<dyn std::error::Error>> {
        let o = self.engine.create(&self.owner, n, &Spec::File(Bytes(0)))?;
        self.write(&o.place, content)?;
        self.engine.flush(&self.owner, n)?;
        Ok(o.id)
    }

    /// Content with a zero at its end, since a slab may be larger.
    fn write(&self, at: &Place, content: &str) -> Outcome {
        let path = self.engine.attach(at, Access::Write)?.path;
        let mut f = std::fs::OpenOptions::new().write(true).open(path)?;
        f.write_all(format!("{content}\0").as_bytes())?;
        Ok(f.sync_all()?)
    }

    /// What was written.
    fn read(&self, at: &Place) -> Result<Option<String>, Box<dyn std::error::Error>> {
        if self.engine.look(at)?.is_none() {
            return Ok(None);
        }
        let mut s = Vec::new();
        let f = std::fs::File::open(self.engine.attach(at, Access::Read)?.path)?;
        std::io::BufReader::new(f.take(4096)).read_until(0, &mut s)?;
        self.engine.detach(at, Access::Write)?;
        Ok(Some(String::from_utf8_lossy(&s).trim_end_matches('\0').to_owned()))
    }
}

/// Runs the suite; `make` gives an empty storage that is no domain yet.
///
/// # Panics
/// When the engine breaks a rule; the message names it.
pub fn run(make: &dyn Fn() -> Box<dyn Engine>) {
    run_some(make, &|_| true);
}

/// The rules whose names are wanted, for storage on which all of them take long.
///
/// # Panics
/// As `run`.
pub fn run_some(make: &dyn Fn() -> Box<dyn Engine>, wanted: &dyn Fn(&str) -> bool) {
    let rules: &[Rule] = &[
        ("a header is written once", header),
        ("publishing gives a staged slab a name, once", publish),
        ("publishing makes no parent", no_parent),
        ("replacing swaps in one step and keeps the old", replace),
        ("nothing is touched when the object is another", identity),
        ("burying hides, purging deletes", bury),
        ("slabs resize and have the size they say", resize),
        ("clones share and go their own way, and a pool goes last", pool),
        ("adopting costs nothing and loses nothing", adopt),
        ("what is handed over belongs to its heir alone", take_over),
        ("records live with their job", records),
        ("ending leaves nothing of the job", end),
        ("directories and links move as one", trees),
    ];
    for (rule, check) in rules.iter().filter(|(rule, _)| wanted(rule)) {
        if let Err(e) = Case::new(make()).and_then(|c| check(&c)) {
            panic!("{rule}: {e}");
        }
    }
}

fn name(s: &str) -> Result<Name, EngineError> {
    Name::parse(s)
}

fn public(s: &str) -> Result<Place, EngineError> {
    name(s).map(Place::Public)
}

fn header(c: &Case) -> Outcome {
    c.engine.init(b"another")?;
    assert_eq!(c.engine.header()?.as_deref(), Some(&b"header"[..]), "the first maker wins");
    assert_eq!(c.engine.area_id()?, c.engine.prepare()?, "preparing twice changes nothing");
    assert!(c.engine.list(None)?.is_empty(), "what is ours is not listed");
    assert_eq!(c.engine.jobs()?, [c.owner.job()]);
    c.engine.put_header(b"replaced")?;
    assert_eq!(c.engine.header()?.as_deref(), Some(&b"replaced"[..]));
    Ok(())
}

fn publish(c: &Case) -> Outcome {
    let id = c.slab(0, "x")?;
    let job = c.owner.job();
    assert!(c.engine.list(None)?.is_empty(), "staged is invisible");
    c.engine.publish(&c.lock()?, job, 0, id, &name("a")?)?;
    c.engine.sync(&[public("a")?])?;
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("x"));
    assert_eq!(c.engine.look(&public("a")?)?.map(|o| o.id), Some(id), "identity survives a rename");
    assert!(c.engine.staged(job)?.is_empty());
    let again = c.engine.publish(&c.lock()?, job, 0, id, &name("b")?);
    assert!(matches!(again, Err(EngineError::Absent(_))), "the source entry is gone");
    let other = c.slab(1, "y")?;
    let taken = c.engine.publish(&c.lock()?, job, 1, other, &name("a")?);
    assert!(matches!(taken, Err(EngineError::Exists(_))));
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("x"));
    Ok(())
}

fn no_parent(c: &Case) -> Outcome {
    let id = c.slab(0, "x")?;
    let r = c.engine.publish(&c.lock()?, c.owner.job(), 0, id, &name("gone/a")?);
    assert!(matches!(r, Err(EngineError::Absent(_))), "{r:?}");
    assert!(c.engine.list(None)?.is_empty());
    Ok(())
}

fn replace(c: &Case) -> Outcome {
    let job = c.owner.job();
    let (old, new) = (c.slab(0, "old")?, c.slab(1, "new")?);
    c.engine.publish(&c.lock()?, job, 0, old, &name("a")?)?;
    c.engine.replace(&c.lock()?, (job, 1, new), &name("a")?, old, &c.grave(0))?;
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("new"));
    assert_eq!(c.read(&Place::Dead(c.grave(0)))?.as_deref(), Some("old"));
    assert!(c.engine.staged(job)?.is_empty());
    Ok(())
}

fn identity(c: &Case) -> Outcome {
    let job = c.owner.job();
    let (old, new) = (c.slab(0, "old")?, c.slab(1, "new")?);
    c.engine.publish(&c.lock()?, job, 0, old, &name("a")?)?;
    let r = c.engine.replace(&c.lock()?, (job, 1, new), &name("a")?, new, &c.grave(0));
    assert!(matches!(r, Err(EngineError::Changed(_))), "{r:?}");
    let r = c.engine.bury(&c.lock()?, &public("a")?, new, &c.grave(0));
    assert!(matches!(r, Err(EngineError::Changed(_))), "{r:?}");
    let r = c.engine.publish(&c.lock()?, job, 1, old, &name("b")?);
    assert!(matches!(r, Err(EngineError::Changed(_))), "{r:?}");
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("old"));
    assert_eq!(c.engine.look(&public("b")?)?, None);
    assert!(c.engine.dead()?.is_empty());
    Ok(())
}

fn bury(c: &Case) -> Outcome {
    let id = c.slab(0, "x")?;
    c.engine.publish(&c.lock()?, c.owner.job(), 0, id, &name("a")?)?;
    let kept = Grave { keep: true, ..c.grave(3) };
    c.engine.bury(&c.lock()?, &public("a")?, id, &kept)?;
    assert!(c.engine.list(None)?.is_empty());
    let dead = c.engine.dead()?;
    assert_eq!(dead.iter().map(|o| o.place.clone()).collect::<Vec<_>>(), [Place::Dead(kept)]);
    c.engine.purge(&c.owner, &kept)?;
    assert!(c.engine.dead()?.is_empty());
    c.engine.purge(&c.owner, &kept)?;
    Ok(())
}

fn resize(c: &Case) -> Outcome {
    let unit = c.engine.rounded(Bytes(4096))?;
    let o = c.engine.create(&c.owner, 0, &Spec::File(Bytes(4096)))?;
    assert_eq!(o.size, unit, "no more is promised than there is");
    let lease =
        lock::slab_leases(&c.locks, &[("a", lock::Mode::Exclusive)], Duration::ZERO, &Cancel::default())?;
    let lease = lease.first().ok_or("no lease")?;
    c.engine.resize(lease, &o.place, Bytes(unit.0 + 4096))?;
    let larger = c.engine.look(&o.place)?.ok_or("gone")?;
    assert_eq!((larger.id, larger.size), (o.id, c.engine.rounded(Bytes(unit.0 + 4096))?));
    let mut bytes = Vec::new();
    std::fs::File::open(c.engine.attach(&o.place, Access::Read)?.path)?.read_to_end(&mut bytes)?;
    assert_eq!(bytes.len() as u64, larger.size.0, "and it is there");
    if c.engine.capabilities(&c.owner)?.zero_initialised {
        assert!(bytes.iter().all(|b| *b == 0));
    }
    c.engine.detach(&o.place, Access::Write)?;
    c.engine.resize(lease, &o.place, Bytes(1))?;
    assert_eq!(c.engine.look(&o.place)?.map(|o| o.size), Some(c.engine.rounded(Bytes(1))?));
    Ok(())
}

fn pool(c: &Case) -> Outcome {
    let job = c.owner.job();
    let pool = match c.engine.create(&c.owner, 0, &Spec::Pool(Bytes(32 << 20))) {
        Err(EngineError::Unsupported { .. }) => return Ok(()),
        o => o?.id,
    };
    let spec = Spec::Thin { pool: Place::Staged(job, 0), size: Bytes(64 << 20) };
    let a = c.engine.create(&c.owner, 1, &spec)?;
    c.engine.publish(&c.lock()?, job, 0, pool, &name("a-pool")?)?;
    assert_eq!(a.size, c.engine.rounded(Bytes(64 << 20))?, "a thin slab may promise more than there is");
    c.write(&a.place, "x")?;
    c.engine.publish(&c.lock()?, job, 1, a.id, &name("a")?)?;
    let lease =
        lock::slab_leases(&c.locks, &[("a", lock::Mode::Exclusive)], Duration::ZERO, &Cancel::default())?;
    c.engine.resize(lease.first().ok_or("no lease")?, &public("a-pool")?, Bytes(64 << 20))?;
    let pooled = c.engine.look(&public("a-pool")?)?.ok_or("gone")?;
    assert_eq!((pooled.kind, pooled.size), (Kind::Pool, c.engine.rounded(Bytes(64 << 20))?));
    let saved = c.engine.create(&c.owner, 2, &Spec::Clone(name("a")?))?;
    c.write(&public("a")?, "y")?;
    assert_eq!(c.read(&saved.place)?.as_deref(), Some("x"), "a clone is of its moment");
    // Back to what it was: a clone of the clone takes the place of the original.
    c.engine.publish(&c.lock()?, job, 2, saved.id, &name("a_s0")?)?;
    let back = c.engine.create(&c.owner, 3, &Spec::Clone(name("a_s0")?))?;
    c.engine.replace(&c.lock()?, (job, 3, back.id), &name("a")?, a.id, &c.grave(0))?;
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("x"));
    assert_eq!(c.read(&Place::Dead(c.grave(0)))?.as_deref(), Some("y"));
    c.engine.bury(&c.lock()?, &public("a-pool")?, pool, &c.grave(1))?;
    let early = c.engine.purge(&c.owner, &c.grave(1));
    assert!(matches!(early, Err(EngineError::InUse { .. })), "{early:?}");
    c.engine.purge(&c.owner, &c.grave(0))?;
    assert_eq!(c.read(&public("a_s0")?)?.as_deref(), Some("x"), "nothing in it was touched");
    for (n, at, id) in [(2, "a", back.id), (3, "a_s0", saved.id)] {
        c.engine.bury(&c.lock()?, &public(at)?, id, &c.grave(n))?;
        c.engine.purge(&c.owner, &c.grave(n))?;
    }
    c.engine.purge(&c.owner, &c.grave(1))?;
    assert!(c.engine.dead()?.is_empty());
    Ok(())
}

fn adopt(c: &Case) -> Outcome {
    let job = c.owner.job();
    let id = c.slab(0, "x")?;
    c.engine.publish(&c.lock()?, job, 0, id, &name("a")?)?;
    let second = match c.engine.adopt(&c.owner, 1, &name("a")?) {
        Err(EngineError::Unsupported { .. }) => return Ok(()),
        o => o?,
    };
    assert_eq!(second.id, id);
    c.engine.bury(&c.lock()?, &second.place, id, &c.grave(0))?;
    c.engine.purge(&c.owner, &c.grave(0))?;
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("x"), "undoing an adoption loses nothing");
    Ok(())
}

fn take_over(c: &Case) -> Outcome {
    let (job, id) = (c.owner.job(), c.slab(0, "x")?);
    let heir = lock::owner_lease(&c.locks, JobId::generate())?;
    let early = c.engine.take_over(&c.lock()?, (&c.owner, 0, id), &heir, 3);
    if matches!(early, Err(EngineError::Unsupported { .. })) {
        return Ok(());
    }
    assert!(matches!(early, Err(EngineError::Absent(_))), "it has no staging area: {early:?}");
    c.engine.begin(&heir)?;
    let other = c.slab(1, "y")?;
    let wrong = c.engine.take_over(&c.lock()?, (&c.owner, 0, other), &heir, 3);
    assert!(matches!(wrong, Err(EngineError::Changed(_))), "{wrong:?}");
    c.engine.take_over(&c.lock()?, (&c.owner, 0, id), &heir, 3)?;
    assert_eq!(c.read(&Place::Staged(heir.job(), 3))?.as_deref(), Some("x"));
    assert_eq!(c.engine.look(&Place::Staged(heir.job(), 3))?.map(|o| o.id), Some(id));
    let late = c.engine.publish(&c.lock()?, job, 0, id, &name("a")?);
    assert!(matches!(late, Err(EngineError::Absent(_))), "who wakes after that publishes nothing: {late:?}");
    c.engine.publish(&c.lock()?, heir.job(), 3, id, &name("a")?)?;
    c.engine.end(&heir)?;
    assert_eq!(c.read(&public("a")?)?.as_deref(), Some("x"));
    Ok(())
}

fn records(c: &Case) -> Outcome {
    let job = c.owner.job();
    assert_eq!(c.engine.record(job, Record::Intent)?, None);
    c.engine.put_record(&c.owner, Record::Intent, b"i")?;
    c.engine.put_record(&c.owner, Record::Commit, b"c1")?;
    c.engine.put_record(&c.owner, Record::Commit, b"c2")?;
    assert_eq!(c.engine.record(job, Record::Commit)?.as_deref(), Some(&b"c2"[..]), "rewritten whole");
    assert!(c.engine.staged(job)?.is_empty(), "a record is no slab");
    match c.engine.put_record(&c.owner, Record::Undo, b"u") {
        Err(EngineError::Unsupported { .. }) => {}
        put => {
            put?;
            assert_eq!(c.engine.record(job, Record::Undo)?.as_deref(), Some(&b"u"[..]));
            let id = c.slab(0, "before")?;
            c.engine.publish(&c.lock()?, job, 0, id, &name("a")?)?;
            c.engine.mend(&c.owner, &public("a")?, id, &[(0, b"m".to_vec()), (3, b"de".to_vec())])?;
            assert_eq!(c.read(&public("a")?)?.as_deref(), Some("mefdee"));
            let other = Identity { ino: id.ino, born: id.born + 1 };
            let r = c.engine.mend(&c.owner, &public("a")?, other, &[(0, b"x".to_vec())]);
            assert!(matches!(r, Err(EngineError::Changed(_))), "{r:?}");
        }
    }
    c.engine.fence(&c.lock()?, job)?;
    c.engine.fence(&c.lock()?, job)?;
    assert_eq!(c.engine.record(job, Record::Intent)?, None);
    c.engine.close(&c.lock()?, &c.owner)?;
    assert_eq!(c.engine.record(job, Record::Commit)?, None);
    assert_eq!(c.engine.record(job, Record::Done)?.as_deref(), Some(&b"c2"[..]));
    let done =
        || Ok::<_, EngineError>(c.engine.done()?.iter().map(|d| (d.job, d.acknowledged)).collect::<Vec<_>>());
    assert_eq!(done()?, [(job, false)]);
    c.engine.acknowledge(&c.lock()?, job)?;
    c.engine.acknowledge(&c.lock()?, job)?;
    assert_eq!(done()?, [(job, true)]);
    assert_eq!(c.engine.record(job, Record::Done)?.as_deref(), Some(&b"c2"[..]));
    c.engine.forget(&c.lock()?, job)?;
    assert_eq!(c.engine.record(job, Record::Done)?, None);
    Ok(())
}

fn end(c: &Case) -> Outcome {
    c.slab(0, "x")?;
    c.engine.put_record(&c.owner, Record::Intent, b"i")?;
    let again = c.engine.begin(&c.owner);
    assert!(matches!(again, Err(EngineError::Exists(_))), "one area per job");
    let mut seen = Vec::new();
    c.engine.each_job(&mut |job, commit, intent| {
        seen.push((job, commit.ok().flatten(), intent().ok().flatten()));
    })?;
    assert_eq!(seen, [(c.owner.job(), None, Some(b"i".to_vec()))]);
    c.engine.end(&c.owner)?;
    assert!(c.engine.jobs()?.is_empty());
    c.engine.end(&c.owner)?;
    c.engine.begin(&c.owner)?;
    let caps = c.engine.capabilities(&c.owner)?;
    assert_eq!(caps, c.engine.capabilities(&c.owner)?, "capabilities are constant");
    assert!(c.engine.staged(c.owner.job())?.is_empty(), "probing leaves nothing");
    Ok(())
}

fn trees(c: &Case) -> Outcome {
    let job = c.owner.job();
    let d = match c.engine.create(&c.owner, 0, &Spec::Dir) {
        Err(EngineError::Unsupported { .. }) => return Ok(()),
        d => d?,
    };
    c.engine.publish(&c.lock()?, job, 0, d.id, &name("a.snap")?)?;
    let x = c.slab(1, "x")?;
    c.engine.publish(&c.lock()?, job, 1, x, &name("a.snap/1")?)?;
    let l = c.engine.create(&c.owner, 2, &Spec::Link("a.snap/1".into()))?;
    c.engine.publish(&c.lock()?, job, 2, l.id, &name("a")?)?;
    assert_eq!(c.engine.list(Some(&name("a.snap")?))?.len(), 1);
    assert_eq!(c.engine.look(&public("a")?)?.map(|o| o.kind), Some(Kind::Link("a.snap/1".into())));
    c.engine.bury(&c.lock()?, &public("a.snap")?, d.id, &c.grave(0))?;
    assert!(c.engine.list(Some(&name("a.snap")?))?.is_empty());
    assert_eq!(c.engine.list(None)?.len(), 1, "the link is left, dangling");
    c.engine.purge(&c.owner, &c.grave(0))?;
    assert!(c.engine.dead()?.is_empty());
    Ok(())
}
