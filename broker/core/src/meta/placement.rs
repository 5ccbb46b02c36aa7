//! Which nodes hold a stream, and which of them should lead it.
//!
//! Pure scoring over what is assigned already: nodes that hold fewest replicas first, and among the chosen the one
//! that is preferred by fewest streams leads. Ties go to the smaller id, so that every replica decides alike.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::ids::NodeId;

/// How much each node has to do.
#[derive(Clone, Debug, Default)]
pub struct Load {
    replicas: BTreeMap<NodeId, u64>,
    leads: BTreeMap<NodeId, u64>,
}

impl Load {
    /// Counts the replica sets of all streams. The first of each set is its preferred leader.
    pub fn of<'a>(sets: impl IntoIterator<Item = &'a [NodeId]>) -> Self {
        let mut load = Self::default();
        for set in sets {
            for node in set {
                *load.replicas.entry(*node).or_default() += 1;
            }
            if let Some(leader) = set.first() {
                *load.leads.entry(*leader).or_default() += 1;
            }
        }
        load
    }

    fn replicas(&self, node: NodeId) -> u64 {
        self.replicas.get(&node).copied().unwrap_or(0)
    }

    fn leads(&self, node: NodeId) -> u64 {
        self.leads.get(&node).copied().unwrap_or(0)
    }
}

/// Chooses `count` of the candidates, the preferred leader first; `None` when there are not enough.
#[must_use]
pub fn choose(count: usize, candidates: &BTreeSet<NodeId>, load: &Load) -> Option<Vec<NodeId>> {
    let mut chosen = extend(Vec::new(), count, candidates, load)?;
    chosen.sort_by_key(|node| (load.leads(*node), *node));
    Some(chosen)
}

/// Changes the size of a replica set and keeps as much of it as possible, in its order. Of the nodes that may go,
/// those that are not alive go first. `None` when there are not enough nodes.
#[must_use]
pub fn resize(
    current: &[NodeId],
    count: usize,
    candidates: &BTreeSet<NodeId>,
    load: &Load,
) -> Option<Vec<NodeId>> {
    let mut kept = current.to_vec();
    while kept.len() > count {
        let goes = kept.iter().rposition(|node| !candidates.contains(node)).unwrap_or(kept.len() - 1);
        kept.remove(goes);
    }
    extend(kept, count, candidates, load)
}

fn extend(
    mut chosen: Vec<NodeId>,
    count: usize,
    candidates: &BTreeSet<NodeId>,
    load: &Load,
) -> Option<Vec<NodeId>> {
    let mut free: Vec<NodeId> = candidates.iter().copied().filter(|node| !chosen.contains(node)).collect();
    free.sort_by_key(|node| (load.replicas(*node), load.leads(*node), *node));
    let missing = count.saturating_sub(chosen.len());
    chosen.extend(free.get(..missing)?);
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn candidates(numbers: &[u64]) -> BTreeSet<NodeId> {
        ids(numbers).into_iter().collect()
    }

    #[test]
    fn replicas_go_to_the_nodes_with_fewest_and_ties_to_the_smaller_id() {
        let sets = [ids(&[1, 2]), ids(&[1])];
        let load = Load::of(sets.iter().map(Vec::as_slice));

        assert_eq!(choose(1, &candidates(&[1, 2, 3, 4]), &load), Some(ids(&[3])));
        assert_eq!(choose(3, &candidates(&[1, 2, 3, 4]), &load), Some(ids(&[2, 3, 4])));
        assert_eq!(choose(5, &candidates(&[1, 2, 3, 4]), &load), None);
    }

    #[test]
    fn preferred_leaders_spread() {
        let mut sets: Vec<Vec<NodeId>> = Vec::new();

        for _ in 0..6 {
            let load = Load::of(sets.iter().map(Vec::as_slice));
            sets.push(choose(3, &candidates(&[1, 2, 3]), &load).expect("three nodes"));
        }

        let leaders: Vec<u64> = sets.iter().map(|set| set[0].0).collect();
        assert_eq!(leaders, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn resizing_keeps_what_is_there() {
        let load = Load::default();
        let all = candidates(&[1, 2, 3, 4]);

        assert_eq!(resize(&ids(&[3]), 3, &all, &load), Some(ids(&[3, 1, 2])));
        assert_eq!(resize(&ids(&[3, 1, 2]), 1, &all, &load), Some(ids(&[3])));
        assert_eq!(resize(&ids(&[9, 1, 2]), 2, &all, &load), Some(ids(&[1, 2])), "9 is not alive");
        assert_eq!(resize(&ids(&[1]), 5, &all, &load), None);
    }
}
