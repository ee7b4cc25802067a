//! A verb that is only planned: what it stages, and what comes of it.

use super::stage::Stage;
use super::{class_of, one_line};
use crate::data::DataError;
use crate::engine::EngineError;
use crate::obs;
use crate::sdm::SdmError;
use crate::sdm::plan::{Draft, Plan};
use crate::sys::effect::only_look;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// From here on this process changes nothing but what is staged for the plan, which goes with this.
pub struct Planning {
    pub plan: Plan,
    home: PathBuf,
    stage: Option<Stage>,
}

impl Planning {
    /// Below the directory of what runs.
    pub fn begin(run: &Path) -> Result<Planning> {
        let home = run.join("plan");
        let stage = Stage::new(&home)?;
        only_look(Some(stage.dir().path().to_owned()));
        Ok(Planning { plan: Plan::default(), home, stage: Some(stage) })
    }

    /// What the verb would do, after it was run.
    pub fn draft(&self, done: Result<String>) -> Draft {
        let mut draft = self.plan.take();
        draft.host = obs::host();
        match done {
            Ok(answer) => draft.answer = answer,
            Err(e) => draft.refused = Some((class_of(&e), one_line(&e))),
        }
        draft
    }
}

impl Drop for Planning {
    fn drop(&mut self) {
        drop(self.stage.take());
        only_look(None);
        let _ = std::fs::remove_dir(&self.home);
    }
}

/// Why a plan ended though the verb would go on: what comes next is in content that is not there, or on a volume
/// that is no device here.
pub(super) fn end(e: &anyhow::Error) -> Option<String> {
    e.chain().find_map(|c| match (c.downcast_ref(), c.downcast_ref(), c.downcast_ref()) {
        (Some(DataError::Planned), ..)
        | (_, Some(EngineError::Inactive(_)), _)
        | (.., Some(SdmError::Engine(EngineError::Inactive(_)))) => Some(c.to_string()),
        _ => None,
    })
}
