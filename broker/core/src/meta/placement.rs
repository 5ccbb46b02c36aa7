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
    /// Counts the replica set of one more stream. The first of the set is its preferred leader.
    pub fn add(&mut self, set: &[NodeId]) {
        for node in set {
            *self.replicas.entry(*node).or_default() += 1;
        }
        if let Some(leader) = set.first() {
            *self.leads.entry(*leader).or_default() += 1;
        }
    }

    /// Takes back what [`add`](Self::add) did.
    pub fn remove(&mut self, set: &[NodeId]) {
        let mut less = |counts: fn(&mut Self) -> &mut BTreeMap<NodeId, u64>, node| {
            if let Some(count) = counts(self).get_mut(node) {
                *count = count.saturating_sub(1);
            }
        };
        set.iter().for_each(|node| less(|load| &mut load.replicas, node));
        set.first().into_iter().for_each(|leader| less(|load| &mut load.leads, leader));
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

    fn load(sets: &[Vec<NodeId>]) -> Load {
        let mut load = Load::default();
        sets.iter().for_each(|set| load.add(set));
        load
    }

    #[test]
    fn what_is_taken_back_does_not_count() {
        let mut load = load(&[ids(&[1, 2]), ids(&[2, 3])]);

        load.remove(&ids(&[2, 3]));

        assert_eq!(choose(2, &candidates(&[1, 2, 3]), &load), Some(ids(&[2, 3])));
    }

    #[test]
    fn replicas_go_to_the_nodes_with_fewest_and_ties_to_the_smaller_id() {
        let sets = [ids(&[1, 2]), ids(&[1])];
        let load = load(&sets);

        assert_eq!(choose(1, &candidates(&[1, 2, 3, 4]), &load), Some(ids(&[3])));
        assert_eq!(choose(3, &candidates(&[1, 2, 3, 4]), &load), Some(ids(&[2, 3, 4])));
        assert_eq!(choose(5, &candidates(&[1, 2, 3, 4]), &load), None);
    }

    #[test]
    fn preferred_leaders_spread() {
        let mut sets: Vec<Vec<NodeId>> = Vec::new();

        for _ in 0..6 {
            let load = load(&sets);
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
