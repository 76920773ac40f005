//! Execution nodes of our own, and how they travel: network and waiting live here.

mod answer;
mod bar;
mod bind;
mod chunk_scan;
mod codec;
mod count;
mod explain;
mod hedge;
mod keep;
mod leaf;
mod pace;
mod passed;
mod read;
mod remote_fragment;
mod retry;
mod run;
mod send;
mod suspects;
mod texts;

pub(crate) use answer::{AnswerExec, State};
pub(crate) use bind::bind;
pub(crate) use chunk_scan::{ChunkScanExec, ScanPlan};
pub(crate) use codec::{FragmentCodec, PLAN_VERSION};
pub(crate) use count::count_rows;
pub(crate) use explain::{explain_lines, plan_lines};
pub(crate) use leaf::{ScanLeaf, ScanOrder};
pub(crate) use pace::Pace;
pub(crate) use read::{Binding, ScanTotals};
pub(crate) use remote_fragment::{RemoteFragmentExec, Spread};
pub(crate) use retry::{fresh_snapshot_may_do, rpc_error};
pub(crate) use suspects::Suspects;
pub(crate) use texts::TextsExec;
