//! What every lock backend must do. Called by each backend's tests, ours and others'.

use super::{LeaseId, LockBackend, LockError, Mode};

/// Runs the suite; `make` gives a backend on which nothing is held.
///
/// # Panics
/// When the backend breaks a rule; the message names it.
pub fn run(make: &dyn Fn() -> Box<dyn LockBackend>) {
    let slab = |n: &str| LeaseId::Slab(n.to_owned());
    let busy = |r: &Result<_, LockError>| matches!(r, Err(LockError::Busy(_)));

    let l = make();
    let Ok(a) = l.try_acquire(&slab("a"), Mode::Exclusive) else { panic!("a free lease is given") };
    assert!(a.still_held().is_ok(), "a fresh lease is held");
    assert!(busy(&l.try_acquire(&slab("a"), Mode::Exclusive)), "exclusive excludes exclusive");
    assert!(busy(&l.try_acquire(&slab("a"), Mode::Shared)), "exclusive excludes shared");
    assert!(l.try_acquire(&slab("b"), Mode::Exclusive).is_ok(), "another slab is free");
    assert!(l.try_acquire(&LeaseId::Domain, Mode::Exclusive).is_ok(), "the domain is free");
    assert!(matches!(l.is_held(&slab("a")), Ok(true)), "a held lease shows");
    assert!(matches!(l.is_held(&slab("b")), Ok(false)), "a dropped lease does not show");
    drop(a);
    assert!(matches!(l.is_held(&slab("a")), Ok(false)), "dropping releases");

    let l = make();
    let (one, two) = (l.try_acquire(&slab("a"), Mode::Shared), l.try_acquire(&slab("a"), Mode::Shared));
    assert!(one.is_ok() && two.is_ok(), "sharers share");
    assert!(busy(&l.try_acquire(&slab("a"), Mode::Exclusive)), "shared excludes exclusive");
    drop(one);
    assert!(busy(&l.try_acquire(&slab("a"), Mode::Exclusive)), "one sharer of two still excludes");
    drop(two);
    assert!(l.try_acquire(&slab("a"), Mode::Exclusive).is_ok(), "the last sharer gone, it is free");
}
