//! How a fragment's plan travels: as datafusion-proto writes it, with our own nodes as extensions.
//!
//! Functions travel by name, because both sides register the same. The encoding changes between DataFusion's major
//! versions, and with our nodes, so that every fragment carries [`PLAN_VERSION`].

use std::sync::Arc;

use datafusion::{
    common::{internal_err, not_impl_err},
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use serde::{Deserialize, Serialize};

use super::{AnswerExec, ChunkScanExec, ScanLeaf, State};

/// Version of the encoding: DataFusion's major version in hundreds, and that of our own nodes.
pub(crate) const PLAN_VERSION: u32 = 55_01;
/// Partitions of a scan that came over the wire and is not bound yet: more than one, so that no operator above it
/// takes it for whole.
const UNBOUND_PARTITIONS: usize = 2;

/// A node of our own as it travels; its inputs travel beside it.
#[derive(Debug, Serialize, Deserialize)]
enum Node {
    Scan(Box<ScanLeaf>),
    Answer(Vec<State>),
}

/// Writes and reads [`ChunkScanExec`] and [`AnswerExec`].
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
        let node: Node = rmp_serde::from_slice(bytes)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        match (node, inputs) {
            (Node::Scan(leaf), []) => {
                Ok(Arc::new(ChunkScanExec::received(*leaf, UNBOUND_PARTITIONS)))
            }
            (Node::Answer(states), [input]) if states.len() == input.schema().fields().len() => {
                Ok(Arc::new(AnswerExec::new(Arc::clone(input), states)))
            }
            _ => internal_err!("a node of the fragment has the wrong inputs"),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let node = if let Some(scan) = node.downcast_ref::<ChunkScanExec>() {
            Node::Scan(Box::new(scan.leaf().clone()))
        } else if let Some(answer) = node.downcast_ref::<AnswerExec>() {
            Node::Answer(answer.states().to_vec())
        } else {
            return not_impl_err!("{} cannot run on a data node", node.name());
        };
        rmp_serde::encode::write(bytes, &node)
            .map_err(|error| DataFusionError::External(Box::new(error)))
    }
}
