//! Which subjects a filter with wildcards can mean, without looking at all of them.
//!
//! Subjects are divided by their first tokens, as far as that pays: a token that many subjects share gets a branch of
//! its own, and what is left stays where it is. Subjects whose next token is theirs alone, such as keys and order
//! numbers, make no branches, so there is at most one branch for every few subjects, whatever clients publish. A filter
//! leads to the branches that its tokens name, and gets everything there: whoever asks compares each subject with the
//! filter.
//!
//! The order of what is found differs between nodes.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use levee_protocol::subject::{Filter, tokens};

/// A token gets a branch when so many subjects share it, of those that are looked at.
const BRANCH_MIN: u32 = 16;
/// A branch with fewer subjects is not divided.
const DIVIDE_MIN: usize = 256;
/// Of more than these, the newest are looked at: a look holds the stream up for some milliseconds.
const LOOK_MAX: usize = 1 << 16;
/// While looks find nothing to divide, they come after twice as many new subjects each time, up to this.
const WAIT_MAX: usize = 1 << 20;
/// Tokens further behind make no branches: a subject may have thousands.
const DEPTH_MAX: u32 = 16;

const ROOT: u32 = 0;

/// The subjects of a stream, by their first tokens. They go by numbers that the caller gives them, from 0 on.
#[derive(Debug)]
pub(crate) struct Branches {
    branches: Vec<Branch>,
    vacant: Vec<u32>,
    /// Where each subject is, by its number.
    places: Vec<Place>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Branch {
    /// The token that leads here. Those before it are its parents'.
    token: Box<[u8]>,
    parent: u32,
    /// Tokens on the way here.
    depth: u32,
    children: HashTable<u32>,
    members: Vec<u32>,
    /// Members that came since it was last looked whether they divide.
    arrived: usize,
    /// How many have to come before that is looked again.
    wait: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    branch: u32,
    at: u32,
}

impl Default for Branches {
    fn default() -> Self {
        let root = Branch { wait: DIVIDE_MIN, ..Branch::default() };
        Self { branches: vec![root], vacant: Vec::new(), places: Vec::new(), hasher: RandomState::default() }
    }
}

impl Branches {
    /// Adds a subject. `text` gives the text of every subject that is here, and of this one.
    pub(crate) fn insert<'a>(&mut self, number: u32, text: impl Fn(u32) -> &'a [u8]) {
        let mut branch = ROOT;
        let mut rest = text(number);
        while let Some((token, behind)) = split(rest)
            && let Some(child) = self.child(branch, token)
        {
            (branch, rest) = (child, behind);
        }
        self.place(number, branch);
        self.divide(branch, &text);
    }

    /// Takes a subject out.
    pub(crate) fn remove(&mut self, number: u32) {
        let Place { branch, at } = self.places[number as usize];
        let members = &mut self.branches[branch as usize].members;
        members.swap_remove(at as usize);
        if let Some(moved) = members.get(at as usize) {
            self.places[*moved as usize].at = at;
        }
        if members.is_empty() {
            let branch = &mut self.branches[branch as usize];
            (branch.arrived, branch.wait) = (0, DIVIDE_MIN);
        }
        self.prune(branch);
    }

    /// At least all subjects that match the filter, each once, in no particular order.
    pub(crate) fn candidates(&self, filter: &Filter) -> impl Iterator<Item = u32> {
        self.reached(filter)
            .into_iter()
            .flat_map(|branch| self.branches[branch as usize].members.iter().copied())
    }

    /// How many those are.
    pub(crate) fn candidates_len(&self, filter: &Filter) -> usize {
        self.reached(filter).into_iter().map(|branch| self.branches[branch as usize].members.len()).sum()
    }

    /// The branches that can hold what the filter matches.
    fn reached(&self, filter: &Filter) -> Vec<u32> {
        let mut reached = Vec::new();
        let mut open = vec![(ROOT, filter.as_bytes())];
        while let Some((branch, rest)) = open.pop() {
            reached.push(branch);
            let children = &self.branches[branch as usize].children;
            if rest == b">" {
                open.extend(children.iter().map(|child| (*child, rest)));
            } else if let Some((token, behind)) = split(rest) {
                // A filter that ends here matches no subject with more tokens.
                if token == b"*" {
                    open.extend(children.iter().map(|child| (*child, behind)));
                } else {
                    open.extend(self.child(branch, token).map(|child| (child, behind)));
                }
            }
        }
        reached
    }

    fn child(&self, branch: u32, token: &[u8]) -> Option<u32> {
        let children = &self.branches[branch as usize].children;
        if children.is_empty() {
            return None;
        }
        let hash = self.hasher.hash_one(token);
        children.find(hash, |child| *self.branches[*child as usize].token == *token).copied()
    }

    fn place(&mut self, number: u32, branch: u32) {
        let home = &mut self.branches[branch as usize];
        let at = u32::try_from(home.members.len()).expect("there are no more of them than numbers");
        home.members.push(number);
        home.arrived += 1;
        if self.places.len() <= number as usize {
            self.places.resize(number as usize + 1, Place::default());
        }
        self.places[number as usize] = Place { branch, at };
    }

    /// When enough have come: moves members with a token that many of them share to branches of their own.
    fn divide<'a>(&mut self, number: u32, text: &dyn Fn(u32) -> &'a [u8]) {
        let branch = &mut self.branches[number as usize];
        if branch.arrived < branch.wait || branch.members.len() < DIVIDE_MIN || branch.depth == DEPTH_MAX {
            return;
        }
        let (depth, count) = (branch.depth, branch.members.len());
        let looked_at = branch.members.split_off(count.saturating_sub(LOOK_MAX));
        // The last token of a subject makes no branch.
        let next_token = |member: u32| {
            let mut ahead = tokens(text(member)).skip(depth as usize);
            ahead.next().filter(|_| ahead.next().is_some())
        };
        let mut shared: HashMap<&[u8], u32, RandomState> = HashMap::default();
        for token in looked_at.iter().filter_map(|member| next_token(*member)) {
            *shared.entry(token).or_default() += 1;
        }
        let mut children = BTreeSet::new();
        for member in looked_at {
            let home = match next_token(member) {
                Some(token) if shared[token] >= BRANCH_MIN => {
                    let child = self.child(number, token).unwrap_or_else(|| self.grow(number, token));
                    children.insert(child);
                    child
                }
                _ => number,
            };
            self.place(member, home);
        }
        let branch = &mut self.branches[number as usize];
        branch.arrived = 0;
        branch.wait = if children.is_empty() {
            (2 * branch.wait).min(WAIT_MAX)
        } else {
            branch.members.len().clamp(DIVIDE_MIN, LOOK_MAX)
        };
        for child in children {
            self.divide(child, text);
        }
    }

    fn grow(&mut self, parent: u32, token: &[u8]) -> u32 {
        let depth = self.branches[parent as usize].depth + 1;
        let branch = Branch { token: token.into(), parent, depth, wait: DIVIDE_MIN, ..Branch::default() };
        let number = match self.vacant.pop() {
            Some(number) => {
                self.branches[number as usize] = branch;
                number
            }
            None => {
                self.branches.push(branch);
                u32::try_from(self.branches.len() - 1).expect("there are fewer of them than subjects")
            }
        };
        let hash = self.hasher.hash_one(token);
        let mut children = std::mem::take(&mut self.branches[parent as usize].children);
        children.insert_unique(hash, number, |child| {
            self.hasher.hash_one(&*self.branches[*child as usize].token)
        });
        self.branches[parent as usize].children = children;
        number
    }

    /// Takes a branch away that nothing is left in, and its parents likewise.
    fn prune(&mut self, mut branch: u32) {
        while branch != ROOT {
            let empty = &self.branches[branch as usize];
            if !empty.members.is_empty() || !empty.children.is_empty() {
                return;
            }
            let (parent, hash) = (empty.parent, self.hasher.hash_one(&*empty.token));
            let children = &mut self.branches[parent as usize].children;
            if let Ok(slot) = children.find_entry(hash, |child| *child == branch) {
                slot.remove();
            }
            self.branches[branch as usize] = Branch::default();
            self.vacant.push(branch);
            branch = parent;
        }
    }
}

/// The first token and what is behind it, if there is more than one.
fn split(subject: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = subject.iter().position(|byte| *byte == b'.')?;
    Some((&subject[..dot], &subject[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Subjects under test, with what a scan of all of them says.
    #[derive(Default)]
    struct Bench {
        branches: Branches,
        subjects: BTreeMap<u32, Vec<u8>>,
    }

    impl Bench {
        fn insert(&mut self, number: u32, subject: &str) {
            self.subjects.insert(number, subject.as_bytes().to_vec());
            self.branches.insert(number, |number| &self.subjects[&number]);
        }

        fn remove(&mut self, number: u32) {
            if self.subjects.remove(&number).is_some() {
                self.branches.remove(number);
            }
        }

        /// Looks a filter up, compares with the scan, and gives how many candidates there were.
        fn check(&self, filter: &str) -> usize {
            let filter = Filter::parse(filter).unwrap();
            let candidates: Vec<u32> = self.branches.candidates(&filter).collect();
            let mut found: Vec<u32> =
                candidates.iter().copied().filter(|number| filter.matches(&self.subjects[number])).collect();
            found.sort_unstable();
            let matches = |(number, subject): (&u32, &Vec<u8>)| filter.matches(subject).then_some(*number);
            assert_eq!(found, self.subjects.iter().filter_map(matches).collect::<Vec<_>>(), "{filter:?}");
            assert_eq!(candidates.len(), self.branches.candidates_len(&filter));
            candidates.len()
        }
    }

    #[test]
    fn a_filter_looks_at_the_branches_that_its_tokens_name() {
        let mut bench = Bench::default();
        for n in 0..100_000 {
            bench.insert(n, &format!("orders.{}.{}.{n}", n % 10, n % 100));
        }

        // Some of the first may be where they were before there was a branch.
        let few = 0..1000;
        assert!(few.contains(&(bench.check("orders.7.>") - 10_000)));
        assert!(few.contains(&(bench.check("orders.*.42.*") - 1000)));
        assert!(few.contains(&(bench.check("orders.2.42.77") - 1000)));
        assert!(few.contains(&bench.check("other.>")));
        assert!(few.contains(&bench.check("orders.7")));
        assert_eq!(bench.check(">"), 100_000);
    }

    #[test]
    fn tokens_that_are_one_subjects_alone_make_no_branches() {
        let mut bench = Bench::default();
        for n in 0..50_000 {
            bench.insert(n, &format!("keys.{n}.value"));
        }

        assert_eq!(bench.branches.branches.len(), 2);
        bench.check("keys.*.value");
    }

    #[test]
    fn subjects_of_thousands_of_tokens_are_not_followed_to_their_end() {
        let mut bench = Bench::default();
        let long = "a.".repeat(2000);
        for n in 0..1000 {
            bench.insert(n, &format!("{long}{}.{n}", n % 2));
        }

        assert_eq!(bench.branches.branches.len(), 1 + DEPTH_MAX as usize);
        bench.check(&format!("{long}*.7"));
        bench.check("a.a.>");
    }

    #[test]
    fn a_branch_goes_with_its_last_subject() {
        let mut bench = Bench::default();
        for round in 0..3 {
            for n in 0..10_000 {
                bench.insert(n, &format!("a.{}.{n}", n % 100 + round * 1000));
            }
            bench.check("a.5.*");
            (0..10_000).for_each(|n| bench.remove(n));
        }

        assert_eq!(bench.check(">"), 0);
        assert_eq!(bench.branches.vacant.len(), bench.branches.branches.len() - 1);
        assert!(bench.branches.branches.len() <= 110, "vacant ones are taken again");
    }

    proptest! {
        #[test]
        fn it_finds_what_a_scan_finds(
            steps in prop::collection::vec((0_u32..2000, 0_u32..6, 0_u32..40, 0_u32..4), 1..3000),
        ) {
            let mut bench = Bench::default();
            for (at, (number, first, second, kind)) in steps.into_iter().enumerate() {
                bench.remove(number);
                match kind {
                    0 => {}
                    1 => bench.insert(number, &format!("t{first}.u{}.{at}", second / 20)),
                    2 => bench.insert(number, &format!("t{first}.u{}", second)),
                    _ => bench.insert(number, &format!("t{}.u1.v{first}.{at}.w", second / 30)),
                }
            }
            for filter in [">", "t1.>", "t0.*", "t0.*.*", "*.u1.>", "*.*.v2.>", "t0.u1.v3.*.w", "t1.u0.*", "*"] {
                bench.check(filter);
            }
        }
    }
}
