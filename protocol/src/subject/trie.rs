//! Hot path: which values are registered for a subject. No allocation and no recursion per match, whatever the
//! subject looks like.
//!
//! Filters without wildcards, which are most of them, lie in one hash table and cost one look-up for the whole
//! subject. Filters with wildcards form a tree with one level per token. The tree branches at a subject only
//! where `*` and the token itself both lead on, so a match visits each node at most once.

use std::collections::HashMap;
use std::ops::ControlFlow;

use foldhash::fast::RandomState;
use memchr::memchr;

use super::{ANY, TAIL, collides, has_wildcard, tokens};

/// Filters and the values registered under them. One filter may have many values, equal ones too.
///
/// For one subject, values are visited in an order that depends only on what was inserted and removed. The order
/// of [`Trie::for_each`] is random: sort before anything replicated depends on it.
#[derive(Clone, Debug)]
pub struct Trie<V> {
    literals: HashMap<Box<[u8]>, Values<V>, RandomState>,
    /// The tree of filters with wildcards; the root is the first. Freed nodes are reused.
    nodes: Vec<Node<V>>,
    free: Vec<NodeIndex>,
    len: usize,
}

type NodeIndex = u32;

const ROOT: NodeIndex = 0;

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Trie<V> {
    /// Without values.
    #[must_use]
    pub fn new() -> Self {
        Self { literals: HashMap::default(), nodes: vec![Node::default()], free: Vec::new(), len: 0 }
    }

    /// How many values there are, over all filters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Registers a value. The filter should be valid: one with an empty token is only found again by `get` and
    /// `remove`, or by a message on exactly that text, and a `>` that is not last is taken literally.
    pub fn insert(&mut self, filter: &[u8], value: V) {
        self.len += 1;
        let values = if has_wildcard(filter) {
            self.tree_entry(filter)
        } else if let Some(values) = self.literals.get_mut(filter) {
            values
        } else {
            self.literals.entry(filter.into()).or_default()
        };
        values.push(value);
    }

    /// Removes the values under exactly this filter for which `remove` says so, and returns how many.
    pub fn remove(&mut self, filter: &[u8], remove: impl FnMut(&V) -> bool) -> usize {
        let removed = if has_wildcard(filter) {
            self.remove_from_tree(filter, remove)
        } else if let Some(values) = self.literals.get_mut(filter) {
            let removed = values.remove(remove);
            if values.is_empty() {
                self.literals.remove(filter);
            }
            removed
        } else {
            0
        };
        self.len -= removed;
        removed
    }

    /// The values under exactly this filter.
    #[must_use]
    pub fn get(&self, filter: &[u8]) -> &[V] {
        let values = if has_wildcard(filter) {
            self.tree_path(filter).map(|path| self.nodes[path.last as usize].values(path.tail))
        } else {
            self.literals.get(filter)
        };
        values.map_or(&[], Values::as_slice)
    }

    /// The same, to change them in place.
    pub fn get_mut(&mut self, filter: &[u8]) -> &mut [V] {
        let values = if has_wildcard(filter) {
            self.tree_path(filter).map(|path| self.nodes[path.last as usize].values_mut(path.tail))
        } else {
            self.literals.get_mut(filter)
        };
        values.map_or(&mut [], Values::as_mut_slice)
    }

    /// Visits every value whose filter matches a message published on `subject`, which is taken literally.
    #[inline]
    pub fn for_each_match<'a>(&'a self, subject: &[u8], mut visit: impl FnMut(&'a V)) {
        let _ = self.walk(subject, |values| {
            values.iter().for_each(&mut visit);
            ControlFlow::Continue(())
        });
    }

    /// Whether some filter matches a message published on `subject`.
    #[must_use]
    pub fn has_match(&self, subject: &[u8]) -> bool {
        self.walk(subject, |_| ControlFlow::Break(())).is_break()
    }

    /// Whether some subject matches both `filter` and a filter with a value for which `counts` says so.
    #[must_use]
    pub fn has_collision(&self, filter: &[u8], mut counts: impl FnMut(&V) -> bool) -> bool {
        if !has_wildcard(filter) {
            let visit = |values: &[V]| {
                if values.iter().any(&mut counts) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            return self.walk(filter, visit).is_break();
        }
        let mut counts = |values: &Values<V>| values.as_slice().iter().any(&mut counts);
        self.literals.iter().any(|(literal, values)| collides(filter, literal) && counts(values))
            || self.has_collision_in_tree(filter, counts)
    }

    fn has_collision_in_tree(&self, filter: &[u8], mut counts: impl FnMut(&Values<V>) -> bool) -> bool {
        let mut ways = vec![(ROOT, Rest::Tokens(filter))];
        while let Some((index, rest)) = ways.pop() {
            let node = &self.nodes[index as usize];
            let (is_here, is_tail) = match rest {
                Rest::Nothing => (true, false),
                Rest::Tokens(_) => (false, true),
                Rest::Anything => (true, true),
            };
            if (is_here && counts(&node.here)) || (is_tail && counts(&node.tail)) {
                return true;
            }
            let (token, next) = match rest {
                Rest::Nothing => continue,
                Rest::Anything | Rest::Tokens(TAIL) => (ANY, Rest::Anything),
                Rest::Tokens(tokens) => match memchr(b'.', tokens) {
                    Some(dot) => (&tokens[..dot], Rest::Tokens(&tokens[dot + 1..])),
                    None => (tokens, Rest::Nothing),
                },
            };
            ways.extend(node.any.map(|child| (child, next)));
            if token == ANY {
                node.literals.for_each(|_, child| ways.push((child, next)));
            } else {
                ways.extend(node.literals.find(token).map(|child| (child, next)));
            }
        }
        false
    }

    /// Visits all values with their filters, those of one filter in a row.
    pub fn for_each<'a>(&'a self, mut visit: impl FnMut(&[u8], &'a V)) {
        for (filter, values) in &self.literals {
            values.as_slice().iter().for_each(|value| visit(filter, value));
        }
        // Nodes still to visit, with the length of their parent's filter and their own token.
        let mut stack: Vec<(NodeIndex, usize, &'a [u8])> = vec![(ROOT, 0, b"")];
        let mut filter = Vec::new();
        while let Some((index, parent_len, token)) = stack.pop() {
            let node = &self.nodes[index as usize];
            filter.truncate(parent_len);
            filter.extend_from_slice(token);
            node.here.as_slice().iter().for_each(|value| visit(&filter, value));
            if index != ROOT {
                filter.push(b'.');
            }
            let len = filter.len();
            filter.extend_from_slice(TAIL);
            node.tail.as_slice().iter().for_each(|value| visit(&filter, value));
            stack.extend(node.any.map(|child| (child, len, ANY)));
            node.literals.for_each(|token, child| stack.push((child, len, token)));
        }
    }

    /// Shows the visitor the values of each matching filter, never an empty slice.
    #[inline]
    fn walk<'a>(
        &'a self,
        subject: &[u8],
        mut visit: impl FnMut(&'a [V]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if let Some(values) = self.literals.get(subject) {
            visit(values.as_slice())?;
        }
        if self.nodes[ROOT as usize].is_leaf() {
            return ControlFlow::Continue(());
        }
        self.walk_tree(subject, visit)
    }

    fn walk_tree<'a>(
        &'a self,
        subject: &[u8],
        mut visit: impl FnMut(&'a [V]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if has_empty_token(subject) {
            return ControlFlow::Continue(());
        }
        let mut branches = Stack::default();
        let mut current = Some((ROOT, 0));
        while let Some((index, at)) = current {
            let node = &self.nodes[index as usize];
            if at > subject.len() {
                if !node.here.is_empty() {
                    visit(node.here.as_slice())?;
                }
                current = branches.pop();
                continue;
            }
            if !node.tail.is_empty() {
                visit(node.tail.as_slice())?;
            }
            if node.is_leaf_below() {
                current = branches.pop();
                continue;
            }
            let rest = &subject[at..];
            let token = &rest[..memchr(b'.', rest).unwrap_or(rest.len())];
            // After the last token this is one past the end of the subject.
            let next = at + token.len() + 1;
            let literal = node.literals.find(token);
            current = match (literal, node.any) {
                (Some(literal), Some(any)) => {
                    branches.push((any, next as u32));
                    Some((literal, next))
                }
                (Some(child), None) | (None, Some(child)) => Some((child, next)),
                (None, None) => branches.pop(),
            };
        }
        ControlFlow::Continue(())
    }

    /// Where a filter's values go in the tree, nodes added as needed.
    fn tree_entry(&mut self, filter: &[u8]) -> &mut Values<V> {
        let (filter, tail) = split_tail(filter);
        let mut at = ROOT;
        for token in filter.into_iter().flat_map(tokens) {
            at = match self.nodes[at as usize].child(token) {
                Some(child) => child,
                None => {
                    let child = self.new_node();
                    let parent = &mut self.nodes[at as usize];
                    if token == ANY {
                        parent.any = Some(child);
                    } else {
                        parent.literals.insert(token, child);
                    }
                    child
                }
            };
        }
        self.nodes[at as usize].values_mut(tail)
    }

    fn new_node(&mut self) -> NodeIndex {
        self.free.pop().unwrap_or_else(|| {
            let index = NodeIndex::try_from(self.nodes.len()).expect("memory ends before four billion nodes");
            self.nodes.push(Node::default());
            index
        })
    }

    fn tree_path(&self, filter: &[u8]) -> Option<TreePath> {
        let (filter, tail) = split_tail(filter);
        let mut last = ROOT;
        for token in filter.into_iter().flat_map(tokens) {
            last = self.nodes[last as usize].child(token)?;
        }
        Some(TreePath { last, tail })
    }

    fn remove_from_tree(&mut self, filter: &[u8], remove: impl FnMut(&V) -> bool) -> usize {
        let (filter, tail) = split_tail(filter);
        let mut parents = Vec::new();
        let mut at = ROOT;
        for token in filter.into_iter().flat_map(tokens) {
            let Some(child) = self.nodes[at as usize].child(token) else { return 0 };
            parents.push((at, token));
            at = child;
        }
        let removed = self.nodes[at as usize].values_mut(tail).remove(remove);
        // Nodes that lead nowhere go back from the leaf up.
        while let Some((parent, token)) = parents.pop()
            && self.nodes[at as usize].is_leaf()
            && self.nodes[at as usize].here.is_empty()
        {
            self.nodes[at as usize] = Node::default();
            self.free.push(at);
            let parent_node = &mut self.nodes[parent as usize];
            if token == ANY {
                parent_node.any = None;
            } else {
                parent_node.literals.remove(token);
            }
            at = parent;
        }
        removed
    }
}

struct TreePath {
    last: NodeIndex,
    tail: Tail,
}

/// Which of a node's two sets of values is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tail {
    /// The filter ends with the node's token.
    No,
    /// The filter goes on with `>`.
    Yes,
}

/// Splits a last `>` off. The filter `>` alone has nothing before it.
fn split_tail(filter: &[u8]) -> (Option<&[u8]>, Tail) {
    match filter {
        TAIL => (None, Tail::Yes),
        [before @ .., b'.', b'>'] => (Some(before), Tail::Yes),
        _ => (Some(filter), Tail::No),
    }
}

/// What is left of a filter on the way down the tree.
#[derive(Clone, Copy)]
enum Rest<'a> {
    Nothing,
    Tokens(&'a [u8]),
    /// Its `>` has taken a token and takes all that follow.
    Anything,
}

/// A prefix of wildcard filters.
#[derive(Clone, Debug)]
struct Node<V> {
    /// Next tokens that are not `*`.
    literals: Children,
    /// The next token is `*`.
    any: Option<NodeIndex>,
    /// Values of the filter that ends here.
    here: Values<V>,
    /// Values of the filter that goes on with `>`.
    tail: Values<V>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { literals: Children::None, any: None, here: Values::None, tail: Values::None }
    }
}

impl<V> Node<V> {
    fn child(&self, token: &[u8]) -> Option<NodeIndex> {
        if token == ANY { self.any } else { self.literals.find(token) }
    }

    /// Whether no longer filter starts with this one.
    fn is_leaf(&self) -> bool {
        self.is_leaf_below() && self.tail.is_empty()
    }

    /// Whether there are no further nodes.
    fn is_leaf_below(&self) -> bool {
        self.any.is_none() && matches!(self.literals, Children::None)
    }

    fn values(&self, tail: Tail) -> &Values<V> {
        match tail {
            Tail::No => &self.here,
            Tail::Yes => &self.tail,
        }
    }

    fn values_mut(&mut self, tail: Tail) -> &mut Values<V> {
        match tail {
            Tail::No => &mut self.here,
            Tail::Yes => &mut self.tail,
        }
    }
}

/// Child nodes by token. Long filters are chains, and a chain should not pay for a hash table per link.
#[derive(Clone, Debug)]
enum Children {
    None,
    One(Box<[u8]>, NodeIndex),
    #[allow(
        clippy::box_collection,
        reason = "few nodes branch, and every node has room for the largest variant"
    )]
    Many(Box<HashMap<Box<[u8]>, NodeIndex, RandomState>>),
}

impl Children {
    #[inline]
    fn find(&self, token: &[u8]) -> Option<NodeIndex> {
        match self {
            Self::None => None,
            Self::One(only, child) => (**only == *token).then_some(*child),
            Self::Many(children) => children.get(token).copied(),
        }
    }

    fn insert(&mut self, token: &[u8], child: NodeIndex) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(token.into(), child),
            Self::One(first, first_child) => {
                Self::Many(Box::new([(first, first_child), (token.into(), child)].into_iter().collect()))
            }
            Self::Many(mut children) => {
                children.insert(token.into(), child);
                Self::Many(children)
            }
        };
    }

    fn remove(&mut self, token: &[u8]) {
        match self {
            Self::None => {}
            Self::One(only, _) => {
                if **only == *token {
                    *self = Self::None;
                }
            }
            Self::Many(children) => {
                children.remove(token);
                // Not back to `One`: what branched once will branch again.
                if children.is_empty() {
                    *self = Self::None;
                }
            }
        }
    }

    fn for_each<'a>(&'a self, mut visit: impl FnMut(&'a [u8], NodeIndex)) {
        match self {
            Self::None => {}
            Self::One(token, child) => visit(token, *child),
            Self::Many(children) => children.iter().for_each(|(token, child)| visit(token, *child)),
        }
    }
}

/// The values of one filter. Nearly always there is one, which then needs no allocation of its own.
#[derive(Clone, Debug, Default)]
enum Values<V> {
    #[default]
    None,
    One(V),
    Many(Vec<V>),
}

impl<V> Values<V> {
    fn as_slice(&self) -> &[V] {
        match self {
            Self::None => &[],
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [V] {
        match self {
            Self::None => &mut [],
            Self::One(value) => std::slice::from_mut(value),
            Self::Many(values) => values,
        }
    }

    /// `Many` is never empty.
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn push(&mut self, value: V) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(value),
            Self::One(first) => Self::Many(vec![first, value]),
            Self::Many(mut values) => {
                values.push(value);
                Self::Many(values)
            }
        };
    }

    /// Keeps the order of those that stay.
    fn remove(&mut self, mut remove: impl FnMut(&V) -> bool) -> usize {
        let before = self.as_slice().len();
        match self {
            Self::None => {}
            Self::One(value) => {
                if remove(value) {
                    *self = Self::None;
                }
            }
            Self::Many(values) => {
                values.retain(|value| !remove(value));
                if values.is_empty() {
                    *self = Self::None;
                }
            }
        }
        before - self.as_slice().len()
    }
}

/// Branches of a walk that are still to be taken: node and offset of its next token. Few subjects have more than
/// a handful, so the first ones need no allocation.
#[derive(Default)]
struct Stack {
    first: [(NodeIndex, u32); 16],
    first_len: usize,
    more: Vec<(NodeIndex, u32)>,
}

impl Stack {
    fn push(&mut self, branch: (NodeIndex, u32)) {
        match self.first.get_mut(self.first_len) {
            Some(slot) => {
                *slot = branch;
                self.first_len += 1;
            }
            None => self.more.push(branch),
        }
    }

    fn pop(&mut self) -> Option<(NodeIndex, usize)> {
        let (node, at) = match self.more.pop() {
            Some(branch) => branch,
            None => {
                self.first_len = self.first_len.checked_sub(1)?;
                self.first[self.first_len]
            }
        };
        Some((node, at as usize))
    }
}

/// Whether the subject is empty, starts or ends with a dot, or has two in a row. Such subjects match nothing.
fn has_empty_token(subject: &[u8]) -> bool {
    let mut previous = b'.';
    for &byte in subject {
        if byte == b'.' && previous == b'.' {
            return true;
        }
        previous = byte;
    }
    previous == b'.'
}

#[cfg(test)]
mod tests;
