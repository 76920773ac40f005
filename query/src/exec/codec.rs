//! How a fragment's plan travels: as datafusion-proto writes it, with our leaf as an extension.
//!
//! Functions travel by name, because both sides register the same. The encoding changes between DataFusion's major
//! versions, so that every fragment carries [`PLAN_VERSION`].

use std::sync::Arc;

use datafusion::{
    common::{internal_err, not_impl_err},
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};

use super::{ChunkScanExec, ScanLeaf};

/// Version of the encoding: DataFusion's major version.
pub(crate) const PLAN_VERSION: u32 = 55;
/// Partitions of a scan that came over the wire and is not bound yet: more than one, so that no operator above it
/// takes it for whole.
const UNBOUND_PARTITIONS: usize = 2;

/// Writes and reads [`ChunkScanExec`].
#[derive(Debug)]
pub(crate) struct FragmentCodec;

impl PhysicalExtensionCodec for FragmentCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _context: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if !inputs.is_empty() {
            return internal_err!("a scan of chunks has no input");
        }
        let leaf: ScanLeaf = rmp_serde::from_slice(bytes)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Arc::new(ChunkScanExec::received(leaf, UNBOUND_PARTITIONS)))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(scan) = node.downcast_ref::<ChunkScanExec>() else {
            return not_impl_err!("{} cannot run on a data node", node.name());
        };
        rmp_serde::encode::write(bytes, scan.leaf())
            .map_err(|error| DataFusionError::External(Box::new(error)))
    }
}
