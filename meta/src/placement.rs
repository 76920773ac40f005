//! The pure choice of nodes for new chunks and for the buckets they go to.
//!
//! Lists of nodes come in the order of preference of the caller, which is that of their names, so that equal catalogs
//! choose equally. Nothing here knows whether a node is alive: callers leave out what must not be chosen.

use hypertide_proto::ids::NodeId;

/// A node that may take a replica, and how many replicas of the table it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Replicas of the same table's chunks on it.
    pub replicas: u64,
}

/// The nodes of each bucket of a hash dimension: bucket `i` begins at node `i`, and its further replicas follow
/// round the list, so that two neighbours share as few nodes as can be.
///
/// Every bucket has `min(factor, nodes)` distinct nodes; no node is first in two buckets more than another.
#[must_use]
pub fn buckets(nodes: &[NodeId], partitions: u16, factor: u16) -> Vec<Vec<NodeId>> {
    let replicas = usize::from(factor).min(nodes.len());
    let list = |first: usize| nodes.iter().cycle().skip(first).take(replicas).copied().collect();
    (0..usize::from(partitions)).map(|bucket| list(bucket % nodes.len().max(1))).collect()
}

/// The buckets after nodes came or went: each keeps the nodes it has, as far as they are still there, and no more
/// replicas of buckets move than it takes to even the nodes out.
///
/// Every bucket has `min(factor, nodes)` distinct nodes; no node is in two buckets more than another.
#[must_use]
pub fn rebucket(
    old: &[Vec<NodeId>],
    nodes: &[NodeId],
    partitions: usize,
    factor: u16,
) -> Vec<Vec<NodeId>> {
    let replicas = usize::from(factor).min(nodes.len());
    let kept = |bucket: usize| {
        let nodes = old.get(bucket).into_iter().flatten().filter(|node| nodes.contains(node));
        nodes.take(replicas).copied().collect::<Vec<NodeId>>()
    };
    let mut buckets: Vec<Vec<NodeId>> = (0..partitions).map(kept).collect();
    for bucket in 0..partitions {
        fill(&mut buckets, bucket, nodes, replicas);
    }
    while let Some((from, to)) = uneven(nodes, |node| held(&buckets, node)) {
        let gives = |bucket: &&mut Vec<NodeId>| bucket.contains(&from) && !bucket.contains(&to);
        let Some(bucket) = buckets.iter_mut().rev().find(gives) else { break };
        bucket.iter_mut().filter(|node| **node == from).for_each(|node| *node = to);
    }
    // Who stands first changes nothing on disk, and evens out who is asked first.
    while let Some((from, to)) = uneven(nodes, |node| first(&buckets, node)) {
        let gives =
            |bucket: &&mut Vec<NodeId>| bucket.first() == Some(&from) && bucket.contains(&to);
        let Some(bucket) = buckets.iter_mut().find(gives) else { break };
        bucket.sort_by_key(|node| *node != to);
    }
    buckets
}

/// Gives a bucket the nodes that it lacks, those with the fewest buckets first.
fn fill(buckets: &mut [Vec<NodeId>], bucket: usize, nodes: &[NodeId], replicas: usize) {
    loop {
        let Some(own) = buckets.get(bucket).filter(|own| own.len() < replicas) else { return };
        let missing = nodes.iter().filter(|node| !own.contains(node));
        let least = missing.min_by_key(|node| (held(buckets, **node), first(buckets, **node)));
        let Some(least) = least.copied() else { return };
        buckets.get_mut(bucket).into_iter().for_each(|own| own.push(least));
    }
}

fn held(buckets: &[Vec<NodeId>], node: NodeId) -> usize {
    buckets.iter().filter(|bucket| bucket.contains(&node)).count()
}

fn first(buckets: &[Vec<NodeId>], node: NodeId) -> usize {
    buckets.iter().filter(|bucket| bucket.first() == Some(&node)).count()
}

/// The nodes with the most and with the fewest, when they differ by more than one.
fn uneven(nodes: &[NodeId], count: impl Fn(NodeId) -> usize) -> Option<(NodeId, NodeId)> {
    let most = nodes.iter().copied().max_by_key(|node| count(*node))?;
    let fewest = nodes.iter().copied().min_by_key(|node| count(*node))?;
    (count(most) > count(fewest) + 1).then_some((most, fewest))
}

/// The nodes of a new chunk: those of its bucket that are candidates, in their order, then the candidates with the
/// fewest replicas until there are `factor`. Without a hash dimension the bucket is empty, which gives round robin.
///
/// The answer is shorter than `factor` when there are fewer candidates.
#[must_use]
pub fn choose(bucket: &[NodeId], candidates: &[Candidate], factor: u16) -> Vec<NodeId> {
    let usable = |node: &NodeId| candidates.iter().any(|candidate| candidate.node == *node);
    let mut chosen: Vec<NodeId> = bucket.iter().copied().filter(usable).collect();
    let mut others: Vec<&Candidate> =
        candidates.iter().filter(|candidate| !chosen.contains(&candidate.node)).collect();
    // The sort is stable: among equally laden nodes the order of the candidates decides.
    others.sort_by_key(|candidate| candidate.replicas);
    chosen.extend(others.iter().map(|candidate| candidate.node));
    chosen.truncate(usize::from(factor));
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn nodes(count: u64) -> Vec<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    fn candidates(replicas: &[u64]) -> Vec<Candidate> {
        let node = |(at, replicas): (usize, &u64)| Candidate {
            node: NodeId(at as u64 + 1),
            replicas: *replicas,
        };
        replicas.iter().enumerate().map(node).collect()
    }

    #[test]
    fn buckets_are_even_and_distinct_on_all_small_clusters() {
        for (count, partitions, factor) in (1..7u64)
            .flat_map(|n| (1..20u16).map(move |p| (n, p)))
            .flat_map(|(n, p)| (1..5u16).map(move |f| (n, p, f)))
        {
            let buckets = buckets(&nodes(count), partitions, factor);
            assert_eq!(buckets.len(), usize::from(partitions));
            let (mut first, mut all) = (BTreeMap::new(), BTreeMap::new());
            for bucket in &buckets {
                let distinct: BTreeSet<_> = bucket.iter().collect();
                assert_eq!(distinct.len(), usize::from(factor).min(count as usize));
                assert_eq!(distinct.len(), bucket.len());
                *first.entry(bucket[0]).or_insert(0u64) += 1;
                bucket.iter().for_each(|node| *all.entry(*node).or_insert(0u64) += 1);
            }
            let spread = |held: &BTreeMap<NodeId, u64>| {
                let of = |node| held.get(node).copied().unwrap_or(0);
                let held: Vec<u64> = nodes(count).iter().map(of).collect();
                held.iter().max().unwrap() - held.iter().min().unwrap()
            };
            assert!(spread(&first) <= 1, "{count} nodes, {partitions} buckets: {first:?}");
            // Runs of `factor` nodes that begin evenly lie evenly too, but for the last, unfinished round.
            assert!(spread(&all) <= u64::from(factor), "{count} nodes, factor {factor}: {all:?}");
        }
    }

    #[test]
    fn a_node_that_comes_takes_its_share_and_nothing_else_moves() {
        for (count, partitions, factor) in (1..7u64)
            .flat_map(|n| (1..17u16).map(move |p| (n, p)))
            .flat_map(|(n, p)| (1..4u16).map(move |f| (n, p, f)))
        {
            let before = buckets(&nodes(count), partitions, factor);
            let after = rebucket(&before, &nodes(count + 1), partitions.into(), factor);
            let moved = moved(&before, &after);
            let new = held(&after, NodeId(count + 1));
            assert_even(&after, count + 1, factor);
            // With fewer nodes than replicas the new one fills places that were empty.
            let filled = usize::from(partitions)
                * (usize::from(factor).min(count as usize + 1)
                    - usize::from(factor).min(count as usize));
            let uneven_before = uneven(&nodes(count), |node| held(&before, node)).is_some();
            if !uneven_before {
                assert_eq!(moved, new.max(filled), "{count} {partitions} {factor}");
            }
        }
    }

    #[test]
    fn a_node_that_goes_leaves_the_other_places_as_they_were() {
        for (count, partitions, factor) in (2..7u64)
            .flat_map(|n| (1..17u16).map(move |p| (n, p)))
            .flat_map(|(n, p)| (1..4u16).map(move |f| (n, p, f)))
        {
            let all = (1..=count).map(NodeId).collect::<Vec<_>>();
            let before = rebucket(&[], &all, partitions.into(), factor);
            let gone = NodeId(1 + u64::from(partitions) % count);
            let left: Vec<NodeId> = all.into_iter().filter(|node| *node != gone).collect();
            let after = rebucket(&before, &left, partitions.into(), factor);
            let counts: Vec<usize> = left.iter().map(|node| held(&after, *node)).collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            let (moved, lost) = (moved(&before, &after), held(&before, gone));
            assert!(moved <= lost + left.len(), "{moved} for {lost}: {before:?} {after:?}");
        }
    }

    /// Places that a node has after and had not before.
    fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> usize {
        let fresh = |(old, new): (&Vec<NodeId>, &Vec<NodeId>)| {
            new.iter().filter(|node| !old.contains(node)).count()
        };
        before.iter().zip(after).map(fresh).sum()
    }

    fn assert_even(buckets: &[Vec<NodeId>], count: u64, factor: u16) {
        for bucket in buckets {
            let distinct: BTreeSet<_> = bucket.iter().collect();
            assert_eq!(distinct.len(), usize::from(factor).min(count as usize));
            assert_eq!(distinct.len(), bucket.len());
        }
        assert_eq!(uneven(&nodes(count), |node| held(buckets, node)), None, "{buckets:?}");
    }

    proptest! {
        #[test]
        fn chosen_nodes_are_distinct_candidates_and_enough(
            replicas in proptest::collection::vec(0u64..50, 0..8),
            bucket in proptest::sample::subsequence((1..12u64).collect::<Vec<_>>(), 0..6),
            factor in 1u16..6,
        ) {
            let candidates = candidates(&replicas);
            let bucket: Vec<NodeId> = bucket.into_iter().map(NodeId).collect();
            let chosen = choose(&bucket, &candidates, factor);
            let distinct: BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            prop_assert_eq!(chosen.len(), candidates.len().min(usize::from(factor)));
            prop_assert!(chosen.iter().all(|node| candidates.iter().any(|c| c.node == *node)));
            // Sticky: a node of the bucket is left out only when others of the bucket fill it.
            let kept = bucket.iter().filter(|node| chosen.contains(node)).count();
            let usable = bucket.iter().filter(|node| candidates.iter().any(|c| c.node == **node));
            prop_assert_eq!(kept, usable.count().min(usize::from(factor)));
        }

        #[test]
        fn round_robin_keeps_the_nodes_level(count in 1u64..7, factor in 1u16..4, chunks in 1usize..60) {
            let mut held = vec![0u64; count as usize];
            for _ in 0..chunks {
                for node in choose(&[], &candidates(&held), factor) {
                    held[node.0 as usize - 1] += 1;
                }
            }
            prop_assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= 1, "{:?}", held);
        }
    }
}
