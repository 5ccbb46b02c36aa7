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

/// Nodes that a stream may be placed on.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// Which.
    pub nodes: BTreeSet<NodeId>,
    /// What no two replicas may have in common, by node; those that are no candidates have it, too. Empty when replicas
    /// may be anywhere.
    pub zones: BTreeMap<NodeId, String>,
    /// Tags that nodes lack which would be candidates otherwise.
    pub unmatched: BTreeSet<String>,
}

/// Chooses `count` of the candidates, the preferred leader first; `None` when there are not enough.
#[must_use]
pub fn choose(count: usize, candidates: &Candidates, load: &Load) -> Option<Vec<NodeId>> {
    let mut chosen = enough(extend(Vec::new(), count, candidates, load), count)?;
    chosen.sort_by_key(|node| (load.leads(*node), *node));
    Some(chosen)
}

/// Changes the size of a replica set and keeps as much of it as possible, in its order. Of the nodes that may go,
/// those that are not alive go first. `None` when there are not enough nodes.
#[must_use]
pub fn resize(current: &[NodeId], count: usize, candidates: &Candidates, load: &Load) -> Option<Vec<NodeId>> {
    let mut kept = current.to_vec();
    while kept.len() > count {
        let goes = kept.iter().rposition(|node| !candidates.nodes.contains(node)).unwrap_or(kept.len() - 1);
        kept.remove(goes);
    }
    enough(extend(kept, count, candidates, load), count)
}

/// Puts another node in the place of one that goes. It comes last: who has everything is to lead. `None` when there is
/// no other.
#[must_use]
pub fn replace(
    current: &[NodeId],
    goes: NodeId,
    mut candidates: Candidates,
    load: &Load,
) -> Option<Vec<NodeId>> {
    let stay = current.iter().copied().filter(|node| *node != goes).collect();
    candidates.nodes.remove(&goes);
    enough(extend(stay, current.len(), &candidates, load), current.len())
}

/// Adds nodes until there are `count`, or until there are no more.
#[must_use]
pub fn extend(mut chosen: Vec<NodeId>, count: usize, candidates: &Candidates, load: &Load) -> Vec<NodeId> {
    let is_free = |node: &NodeId| !chosen.contains(node);
    let mut free: Vec<NodeId> = candidates.nodes.iter().copied().filter(is_free).collect();
    free.sort_by_key(|node| (load.replicas(*node), load.leads(*node), *node));
    for node in free {
        if chosen.len() >= count {
            break;
        }
        let zone = candidates.zones.get(&node);
        let is_taken = zone.is_some() && chosen.iter().any(|other| candidates.zones.get(other) == zone);
        if !is_taken {
            chosen.push(node);
        }
    }
    chosen
}

fn enough(chosen: Vec<NodeId>, count: usize) -> Option<Vec<NodeId>> {
    (chosen.len() >= count).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn candidates(numbers: &[u64]) -> Candidates {
        Candidates { nodes: ids(numbers).into_iter().collect(), ..Candidates::default() }
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
    fn another_node_takes_the_place_of_one_that_goes() {
        let load = load(&[ids(&[4, 1, 2])]);

        assert_eq!(
            replace(&ids(&[1, 2, 3]), NodeId(1), candidates(&[1, 2, 3, 4, 5]), &load),
            Some(ids(&[2, 3, 5]))
        );
        assert_eq!(replace(&ids(&[1]), NodeId(1), candidates(&[1, 4]), &load), Some(ids(&[4])));
        assert_eq!(replace(&ids(&[1, 2, 3]), NodeId(3), candidates(&[1, 2, 3]), &load), None);
    }

    #[test]
    fn extending_goes_as_far_as_there_are_nodes() {
        let load = Load::default();

        assert_eq!(extend(ids(&[1]), 3, &candidates(&[1, 2]), &load), ids(&[1, 2]));
        assert_eq!(extend(ids(&[2]), 3, &candidates(&[1, 2, 3, 4]), &load), ids(&[2, 1, 3]));
        assert_eq!(extend(ids(&[9]), 1, &candidates(&[1]), &load), ids(&[9]));
        assert_eq!(extend(Vec::new(), 1, &candidates(&[]), &load), []);
    }

    #[test]
    fn no_two_replicas_are_in_one_zone() {
        let zones = [(1, "az:a"), (2, "az:a"), (3, "az:b"), (4, "az:b"), (5, "az:c")];
        let zones = zones.into_iter().map(|(node, zone)| (NodeId(node), zone.to_owned())).collect();
        let all = Candidates { zones, ..candidates(&[1, 2, 3, 4, 5]) };
        let load = load(&[ids(&[1])]);

        assert_eq!(choose(3, &all, &load), Some(ids(&[2, 3, 5])));
        assert_eq!(choose(4, &all, &load), None);
        assert_eq!(resize(&ids(&[1]), 3, &all, &load), Some(ids(&[1, 3, 5])));
        assert_eq!(replace(&ids(&[2, 3, 5]), NodeId(2), all.clone(), &load), Some(ids(&[3, 5, 1])));
        assert_eq!(replace(&ids(&[2, 3, 5]), NodeId(5), all, &load), None);
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
