//! Breadth first through all states, so that what breaks an invariant is found by a shortest way.

use std::collections::HashSet;

use hypertide_meta::catalog::Catalog;

use crate::world::{Setting, World};

/// What a search gave.
pub(crate) enum Found {
    /// Every state was visited, and all are sound.
    Nothing { states: usize },
    /// An invariant that a state breaks, and the steps to it.
    Broken { rule: String, trace: Vec<String> },
}

/// The durable form of a catalog: far smaller than its maps, which share nothing once they changed.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Visits every state.
pub(crate) fn explore(setting: Setting) -> Found {
    let (catalog, world) = World::founded();
    let mut seen = HashSet::from([world.key(&catalog, setting)]);
    let mut steps: Vec<(usize, String)> = vec![(0, String::new())];
    let mut layer: Vec<(usize, Rows, World)> = vec![(0, catalog.rows().collect(), world)];
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (at, rows, world) in layer {
            let catalog = Catalog::from_rows(rows).expect("rows of a catalog");
            for (label, catalog, world) in world.successors(&catalog, setting) {
                if !seen.insert(world.key(&catalog, setting)) {
                    continue;
                }
                steps.push((at, label));
                let id = steps.len() - 1;
                if let Err(rule) = world.check(&catalog, setting) {
                    return Found::Broken { rule, trace: trace(&steps, id) };
                }
                next.push((id, catalog.rows().collect(), world));
            }
        }
        layer = next;
    }
    Found::Nothing { states: steps.len() }
}

fn trace(steps: &[(usize, String)], mut at: usize) -> Vec<String> {
    let mut trace = Vec::new();
    while at != 0 {
        trace.push(steps[at].1.clone());
        at = steps[at].0;
    }
    trace.reverse();
    trace
}
