//! An engine that stops in the middle, for tests: after a number of changes every call fails, as it
//! does for a process that lost its storage or its life; or only that one change does. Or a host is paused before
//! changes that need no lock of the domain.

use super::{
    Access, Attachment, Bytes, Capabilities, Engine, EngineError, Finished, Grave, Handover, Identity, Name,
    Object, Part, Place, Record, Result, Spec, Usage,
};
use crate::lock::{DomainLock, JobId, OwnerLease, SlabLease};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Wraps an engine; the call that uses up `left` fails before it changes anything or, with `after`,
/// once it has, and so does every call from then on.
#[derive(Debug)]
pub struct Faulty<E> {
    inner: E,
    left: Arc<AtomicI64>,
    after: bool,
    once: bool,
    pause: Option<Pause>,
}

/// Called before a change that rests on nothing but the owner's own area.
#[derive(Clone)]
pub struct Pause(pub Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pause")
    }
}

impl<E: Engine> Faulty<E> {
    pub fn new(inner: E, changes: i64, after: bool) -> Faulty<E> {
        Faulty::sharing(inner, &Arc::new(AtomicI64::new(changes)), after)
    }

    /// One of several engines that a host uses and loses all at once.
    pub fn sharing(inner: E, left: &Arc<AtomicI64>, after: bool) -> Faulty<E> {
        Faulty { inner, left: Arc::clone(left), after, once: false, pause: None }
    }

    /// Fails one change only, and works again.
    #[must_use]
    pub fn once(self) -> Faulty<E> {
        Faulty { once: true, ..self }
    }

    #[must_use]
    pub fn pausing(self, pause: Pause) -> Faulty<E> {
        Faulty { pause: Some(pause), ..self }
    }

    fn lost() -> EngineError {
        EngineError::Io { what: "storage".to_owned(), source: rustix::io::Errno::IO.into() }
    }

    fn read<T>(&self, op: impl FnOnce(&E) -> Result<T>) -> Result<T> {
        if !self.once && self.left.load(Ordering::SeqCst) < 0 { Err(Self::lost()) } else { op(&self.inner) }
    }

    fn own<T>(&self, op: impl FnOnce(&E) -> Result<T>) -> Result<T> {
        if let Some(Pause(pause)) = &self.pause {
            pause();
        }
        self.change(op)
    }

    fn change<T>(&self, op: impl FnOnce(&E) -> Result<T>) -> Result<T> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            1.. => op(&self.inner),
            0 if self.after => op(&self.inner).and_then(|_| Err(Self::lost())),
            ..0 if self.once => op(&self.inner),
            _ => Err(Self::lost()),
        }
    }
}

macro_rules! pass {
    ($how:ident: $($name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $ty),*) -> $out { self.$how(|e| e.$name($($arg),*)) })*
    };
}

impl<E: Engine> Engine for Faulty<E> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn lock_backend(&self) -> &'static str {
        self.inner.lock_backend()
    }

    fn reads_zero(&self) -> bool {
        self.inner.reads_zero()
    }

    pass! { read:
        usage() -> Result<Usage>;
        header() -> Result<Option<Vec<u8>>>;
        area_id() -> Result<u64>;
        look(at: &Place) -> Result<Option<Object>>;
        list(inside: Option<&Name>) -> Result<Vec<Object>>;
        jobs() -> Result<Vec<JobId>>;
        staged(job: JobId) -> Result<Vec<Object>>;
        dead() -> Result<Vec<Object>>;
        attach(at: &Place, access: Access) -> Result<Attachment>;
        rounded(size: Bytes) -> Result<Bytes>;
        record(job: JobId, record: Record) -> Result<Option<Vec<u8>>>;
        done() -> Result<Vec<Finished>>;
        makers(object: Identity, acknowledged: bool) -> Result<Vec<JobId>>;
        buried(by: JobId) -> Result<Vec<Object>>;
        weight(at: &Place) -> Result<Bytes>;
        strays() -> Result<Vec<String>>;
        attached() -> Result<Vec<(Object, Access)>>;
        moved() -> Result<Vec<Object>>;
        is_pooled(at: &Place) -> Result<bool>;
        hand_over(at: &Place, step: Handover) -> Result<()>;
    }

    pass! { own:
        capabilities(owner: &OwnerLease) -> Result<Capabilities>;
        begin(owner: &OwnerLease) -> Result<()>;
        create(owner: &OwnerLease, n: u32, spec: &Spec) -> Result<Object>;
        adopt(owner: &OwnerLease, n: u32, name: &Name) -> Result<Object>;
        flush(owner: &OwnerLease, n: u32) -> Result<()>;
        append(lease: &SlabLease, owner: &OwnerLease, n: u32, to: &Place) -> Result<()>;
        end(owner: &OwnerLease) -> Result<()>;
        put_record(owner: &OwnerLease, record: Record, bytes: &[u8]) -> Result<()>;
        purge(owner: &OwnerLease, grave: &Grave) -> Result<()>;
    }

    pass! { change:
        prepare() -> Result<u64>;
        init(header: &[u8]) -> Result<()>;
        put_header(header: &[u8]) -> Result<()>;
        take_over(lock: &DomainLock, dead: (&OwnerLease, u32, Identity), owner: &OwnerLease, to: u32) -> Result<()>;
        detach(at: &Place, access: Access) -> Result<()>;
        resize(lease: &SlabLease, at: &Place, to: Bytes) -> Result<()>;
        mend(owner: &OwnerLease, at: &Place, id: Identity, parts: &[Part]) -> Result<()>;
        close(lock: &DomainLock, owner: &OwnerLease) -> Result<()>;
        fence(lock: &DomainLock, job: JobId) -> Result<()>;
        acknowledge(lock: &DomainLock, job: JobId) -> Result<()>;
        forget(lock: &DomainLock, job: JobId) -> Result<()>;
        publish(lock: &DomainLock, job: JobId, n: u32, id: Identity, to: &Name) -> Result<()>;
        replace(lock: &DomainLock, staged: (JobId, u32, Identity), to: &Name, old: Identity, grave: &Grave) -> Result<()>;
        bury(lock: &DomainLock, at: &Place, id: Identity, grave: &Grave) -> Result<()>;
        give_reserve(lock: &DomainLock) -> Result<()>;
        tidy(lock: &DomainLock) -> Result<()>;
        sync(places: &[Place]) -> Result<()>;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn unharmed_it_conforms() {
        super::super::conformance::run(&|| {
            Box::new(super::Faulty::new(super::super::mem::MemEngine::default(), i64::MAX, false))
        });
    }
}
