//! Background merging of small segments: [`plan`] chooses, purely; [`run`](fn@run) does it.

mod plan;
mod run;

pub(crate) use plan::SEGMENTS_MAX;
pub(crate) use run::run;
