//! How the segments of a chunk are written anew.
//!
//! - Small ones are merged in the background, inside the chunk's file: [`plan`] chooses, purely; [`run`](fn@run) does it.
//! - Compression, its undoing, and the return of space make a file anew (`rewrite`), reading it in bands (`band`) that
//!   bound the memory whatever the size of the chunk.

mod band;
mod plan;
mod read;
mod rewrite;
mod run;

pub(crate) use plan::SEGMENTS_MAX;
pub(crate) use rewrite::{Goal, Rewriting, rewrite, shrink_wasteful};
pub(crate) use run::run;
