//! Rules of our own: what text constants and clocks mean, and what runs on data nodes.
//!
//! Analyzer rules make a statement mean the same on every node. Among the physical rules DataFusion's own come first,
//! ours last, because ours read the finished plan: where partitions meet, which aggregate is partial and which final,
//! where a limit may cut a sort. After each of our rules the plan still runs and gives the same rows; with push-down
//! off only the first one acts. One more rule, [`group_by_ids`], works on a fragment where it runs.

mod aggregate;
mod as_text;
mod exact;
mod ids;
mod literals;
mod local_time;
mod order;
mod push;
mod rows;
mod scan;
#[cfg(test)]
mod tests;
mod useful;

use std::sync::Arc;

pub(crate) use ids::group_by_ids;

use datafusion::{
    optimizer::AnalyzerRule,
    physical_optimizer::{PhysicalOptimizerRule, optimizer::PhysicalOptimizer},
};

/// Analyzer rules in their order, after DataFusion's, which have brought everything to its type.
pub(crate) fn analyzer_rules() -> Vec<Arc<dyn AnalyzerRule + Send + Sync>> {
    vec![
        Arc::new(literals::ReadLiterals), // first: a constant is no cast any more
        Arc::new(as_text::WriteAsText),
        Arc::new(local_time::SeeLocalTime), // looks at the casts that are left
    ]
}

/// Physical rules in their order.
pub(crate) fn physical_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    // The last of DataFusion's rules checks that a plan can run at all: it is to see what ours leave.
    let check = rules.pop();
    rules.push(Arc::new(scan::ScanRemotely)); // first: every other step enlarges a fragment
    rules.push(Arc::new(push::PushWork)); // needs the fragments
    rules.extend(check);
    rules
}
