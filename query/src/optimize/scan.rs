//! Wraps every scan into a fragment that holds the scan alone.

use std::sync::Arc;

use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::ExecutionPlan,
};

use crate::exec::{ChunkScanExec, RemoteFragmentExec};

/// The rule. A scan without chunks stays as it is: it gives no row, here as anywhere.
#[derive(Debug)]
pub(super) struct ScanRemotely;

impl PhysicalOptimizerRule for ScanRemotely {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let scan = node.downcast_ref::<ChunkScanExec>();
            Ok(match scan.filter(|scan| !scan.plan().fragments.is_empty()) {
                Some(scan) => Transformed::yes(Arc::new(RemoteFragmentExec::scan(scan)) as _),
                None => Transformed::no(node),
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "scan_remotely"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
