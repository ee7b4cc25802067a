//! `.monitor` in a system datastore: tells host probes to monitor the datastore on its host, and by which
//! driver. Contract 3.0.5.

use super::{At, Marker};
use crate::engine::Name;
use crate::sdm::Work;
use crate::sdm::record::Step;
use crate::sys::Bytes;
use crate::sys::effect::{Effect, step};
use anyhow::{Context as _, Result};
use std::os::unix::fs::FileExt as _;

/// The steps, to be taken last, that bring the marker to what it shall be. Whoever does the same at the
/// same moment does no harm: a name that meanwhile belongs to another object is left to it.
pub(super) fn steps(at: &At, work: &mut Work<'_>, marker: &Marker) -> Result<Vec<Step>> {
    let name = Name::parse(".monitor")?;
    match marker {
        Marker::Keep => Ok(Vec::new()),
        Marker::Remove => Ok(work.step_bury(&name, false)?.into_iter().collect()),
        Marker::Write(text) => {
            let text = format!("{}\n", text.trim());
            let now = match at.look(&name)? {
                Some(o) if o.size.0 < 4096 => std::fs::read_to_string(at.path(&name)?).ok(),
                _ => None,
            };
            if now.as_deref() == Some(text.as_str()) {
                return Ok(Vec::new());
            }
            let slab = work.file(Bytes(0))?;
            let file = slab.file.as_ref().context("a staged file has no file")?;
            step(Effect::Write, &[&slab.path], || file.write_all_at(text.as_bytes(), 0))
                .context("writing .monitor")?;
            work.flush(&slab)?;
            Ok(vec![work.step_to(&slab, &name)?])
        }
    }
}
