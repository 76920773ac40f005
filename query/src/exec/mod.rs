//! Execution nodes of our own, and how they travel: network and waiting live here.

mod chunk_scan;
mod codec;
mod count;
mod explain;
mod hedge;
mod pace;
mod remote_fragment;
mod retry;
mod send;
mod suspects;

pub(crate) use chunk_scan::{Binding, ChunkScanExec, ScanLeaf, ScanPlan, ScanTotals};
pub(crate) use codec::{FragmentCodec, PLAN_VERSION};
pub(crate) use count::count_rows;
pub(crate) use explain::{explain_lines, plan_lines};
pub(crate) use pace::Pace;
pub(crate) use remote_fragment::{RemoteFragmentExec, Spread};
pub(crate) use retry::rpc_error;
pub(crate) use suspects::Suspects;
