use proptest::prelude::*;

use super::*;
use crate::subject::{collides, matches};

fn trie(filters: &[&'static str]) -> Trie<&'static str> {
    let mut trie = Trie::new();
    for filter in filters {
        trie.insert(filter.as_bytes(), *filter);
    }
    trie
}

fn matching<'a>(trie: &Trie<&'a str>, subject: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    trie.for_each_match(subject.as_bytes(), |value| found.push(*value));
    found.sort_unstable();
    assert_eq!(trie.has_match(subject.as_bytes()), !found.is_empty());
    found
}

#[test]
fn every_matching_filter_is_found_once() {
    let trie = trie(&["a.b", "a.*", "*.b", "*.*", "a.>", ">", "a.b.c", "b.>", "*", "a.b.>"]);

    assert_eq!(matching(&trie, "a.b"), ["*.*", "*.b", ">", "a.*", "a.>", "a.b"]);
    assert_eq!(matching(&trie, "a"), ["*", ">"]);
    assert_eq!(matching(&trie, "a.b.c"), [">", "a.>", "a.b.>", "a.b.c"]);
    assert_eq!(matching(&trie, "b.c.d"), [">", "b.>"]);
}

#[test]
fn a_subject_with_an_empty_token_matches_nothing() {
    let trie = trie(&[">", "*", "a.>", "a.*", "a.*.b"]);

    for subject in ["", ".", "a.", ".a", "a..b"] {
        assert_eq!(matching(&trie, subject), [""; 0], "{subject:?}");
    }
}

#[test]
fn a_published_wildcard_is_an_ordinary_token() {
    let trie = trie(&["foo.>", "foo.*", "foo.bar"]);

    assert_eq!(matching(&trie, "foo.*"), ["foo.*", "foo.>"]);
    assert_eq!(matching(&trie, "foo.>"), ["foo.*", "foo.>"]);
}

#[test]
fn values_of_one_filter_keep_their_order_and_go_one_by_one() {
    for filter in ["a.b", "a.*", "a.>"] {
        let mut trie = Trie::new();
        for value in [1, 2, 3] {
            trie.insert(filter.as_bytes(), value);
        }

        assert_eq!(trie.remove(filter.as_bytes(), |value| *value == 2), 1);
        assert_eq!(trie.get(filter.as_bytes()), [1, 3]);
        trie.get_mut(filter.as_bytes())[0] = 7;
        assert_eq!(trie.get(filter.as_bytes()), [7, 3]);
        assert_eq!(trie.len(), 2);
        assert_eq!(trie.remove(filter.as_bytes(), |_| true), 2);
        assert!(trie.is_empty());
        assert!(!trie.has_match(b"a.b"));
    }
}

#[test]
fn removing_what_is_not_there_changes_nothing() {
    let mut trie = trie(&["a.b", "a.*.c"]);

    for filter in ["a", "a.c", "a.*", "a.>", "a.*.c.d", "a.*.>", ">", "*"] {
        assert_eq!(trie.remove(filter.as_bytes(), |_| true), 0, "{filter}");
        assert!(trie.get(filter.as_bytes()).is_empty());
    }
    assert_eq!(trie.remove(b"a.*.c", |_| false), 0);
    assert_eq!(trie.len(), 2);
}

#[test]
fn removed_filters_leave_no_nodes_in_use() {
    let mut trie = Trie::new();
    for round in 0..100 {
        let filters: Vec<_> = (0..50).map(|number| format!("inbox.{round}.{number}.*.x.>")).collect();
        for filter in &filters {
            trie.insert(filter.as_bytes(), ());
        }
        for filter in &filters {
            assert_eq!(trie.remove(filter.as_bytes(), |()| true), 1);
        }
    }

    assert_eq!(trie.free.len(), trie.nodes.len() - 1);
    assert!(trie.nodes.len() < 300, "{} nodes", trie.nodes.len());
    assert!(trie.nodes[ROOT as usize].is_leaf());
}

#[test]
fn subjects_and_filters_of_thousands_of_tokens_do_not_overflow_the_stack() {
    let stars = vec!["*"; 50_000].join(".");
    let tokens = vec!["a"; 50_000].join(".");
    let tail = format!("{tokens}.>");
    let mut trie = Trie::new();
    for filter in [&stars, &tokens, &tail] {
        trie.insert(filter.as_bytes(), ());
    }

    let mut found = 0;
    trie.for_each_match(tokens.as_bytes(), |()| found += 1);
    assert_eq!(found, 2);
    trie.for_each_match(format!("{tokens}.b").as_bytes(), |()| found += 1);
    assert_eq!(found, 3);
    trie.for_each(|_, ()| found += 1);
    assert_eq!(found, 6);
    for filter in [&stars, &tokens, &tail] {
        assert_eq!(trie.remove(filter.as_bytes(), |()| true), 1);
    }
}

#[test]
fn more_branches_than_fit_the_inline_stack_are_all_taken() {
    let mut trie = Trie::new();
    let mut filters = Vec::new();
    for position in 0..40 {
        let mut tokens = ["a"; 40];
        tokens[position] = "*";
        filters.push(tokens.join("."));
    }
    for filter in &filters {
        trie.insert(filter.as_bytes(), ());
    }

    let mut found = 0;
    trie.for_each_match(["a"; 40].join(".").as_bytes(), |()| found += 1);

    assert_eq!(found, 40);
}

fn any_filter() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["a", "b", "c", "*", "*"]);
    let last = prop::sample::select(vec!["a", "b", "c", "*", ">", ">"]);
    (prop::collection::vec(token, 0..5), last).prop_map(|(mut tokens, last)| {
        tokens.push(last);
        tokens.join(".")
    })
}

fn any_subject() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d", "*", ">", ""]), 1..6)
        .prop_map(|tokens| tokens.join("."))
}

proptest! {
    #[test]
    fn a_trie_finds_the_same_collisions_as_a_list_of_filters(
        filters in prop::collection::vec(any_filter(), 0..6),
        asked in prop::collection::vec(any_filter(), 20),
        left_out in 0..6_usize,
    ) {
        let mut trie = Trie::new();
        for (number, filter) in filters.iter().enumerate() {
            trie.insert(filter.as_bytes(), number);
        }

        for one in asked {
            let expected = filters.iter().enumerate().any(|(number, filter)| {
                number != left_out && collides(one.as_bytes(), filter.as_bytes())
            });
            let found = trie.has_collision(one.as_bytes(), |number| *number != left_out);
            prop_assert_eq!(found, expected, "{} among {:?}", one, &filters);
        }
    }

    #[test]
    fn a_trie_agrees_with_a_list_of_filters(
        steps in prop::collection::vec((any_filter(), 0..4_u8, prop::bool::weighted(0.7)), 0..60),
        subjects in prop::collection::vec(any_subject(), 20),
    ) {
        let mut trie = Trie::new();
        let mut list: Vec<(String, u8)> = Vec::new();
        for (filter, value, insert) in steps {
            if insert {
                trie.insert(filter.as_bytes(), (filter.clone(), value));
                list.push((filter, value));
            } else {
                let before = list.len();
                list.retain(|(known, kept)| *known != filter || *kept != value);
                prop_assert_eq!(trie.remove(filter.as_bytes(), |(_, kept)| *kept == value), before - list.len());
            }
        }

        prop_assert_eq!(trie.len(), list.len());
        for subject in subjects {
            let mut expected: Vec<_> =
                list.iter().filter(|(filter, _)| matches(filter.as_bytes(), subject.as_bytes())).cloned().collect();
            let mut found = Vec::new();
            trie.for_each_match(subject.as_bytes(), |value| found.push(value.clone()));
            expected.sort();
            found.sort();
            prop_assert_eq!(trie.has_match(subject.as_bytes()), !found.is_empty());
            prop_assert_eq!(found, expected, "{}", subject);
        }
        let mut all = Vec::new();
        trie.for_each(|filter, value| {
            assert_eq!(filter, value.0.as_bytes());
            all.push(value.clone());
        });
        all.sort();
        list.sort();
        prop_assert_eq!(all, list);
    }
}
