use proptest::prelude::*;

use super::*;

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap()
}

#[test]
fn subjects_have_non_empty_tokens_without_blanks() {
    for valid in ["a", "a.b", "$JS.API.INFO", "foo*.bar>", "a.**", "\u{e4}.\u{f6}", "a-b_c/d"] {
        assert!(is_valid_literal(valid.as_bytes()), "{valid:?}");
    }
    for invalid in
        ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a\r", "a\n", "a\0b", "*", "a.*", "a.>", ">.a"]
    {
        assert!(!is_valid_literal(invalid.as_bytes()), "{invalid:?}");
        assert!(Subject::parse(invalid).is_err(), "{invalid:?}");
    }
}

#[test]
fn filters_have_wildcards_as_whole_tokens_and_the_tail_last() {
    for valid in ["a", ">", "*", "*.*", "a.*.b", "a.>", "*.>", "a>.b", "a.*b.c"] {
        assert!(is_valid_filter(valid.as_bytes()), "{valid:?}");
    }
    for invalid in ["", ">.a", "a.>.b", ">.>", "a..>", "*.", "a.* ", "foo.>.x"] {
        assert!(!is_valid_filter(invalid.as_bytes()), "{invalid:?}");
        assert!(Filter::parse(invalid).is_err(), "{invalid:?}");
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    assert!(Subject::parse(&[b'a', 0xff]).is_err());
    assert!(Filter::parse(&[b'a', 0xff]).is_err());
}

#[test]
fn only_whole_tokens_are_wildcards() {
    assert!(filter("foo*").is_literal());
    assert!(filter("foo.>bar").is_literal());
    assert!(!filter("foo.*").is_literal());
    assert!(filter("foo*").matches(b"foo*"));
    assert!(!filter("foo*").matches(b"foobar"));
}

#[test]
fn a_star_is_one_token_and_a_tail_is_one_or_more() {
    let matches = |text: &str, subject: &str| filter(text).matches(subject.as_bytes());

    assert!(matches("a.*", "a.b"));
    assert!(!matches("a.*", "a"));
    assert!(!matches("a.*", "a.b.c"));
    assert!(matches("a.>", "a.b"));
    assert!(matches("a.>", "a.b.c"));
    assert!(!matches("a.>", "a"));
    assert!(matches("*.b.>", "a.b.c"));
    assert!(!matches("*.b.>", "a.c.c"));
}

#[test]
fn a_published_wildcard_is_an_ordinary_token() {
    assert!(filter("foo.>").matches(b"foo.*"));
    assert!(filter("foo.*").matches(b"foo.>"));
    assert!(!filter("foo.bar").matches(b"foo.*"));
}

#[test]
fn a_published_subject_with_an_empty_token_matches_nothing() {
    for subject in ["", ".", "foo.", ".foo", "foo..x"] {
        for text in [">", "*", "*.*", "foo.>", "foo.*", "foo.*.x", "*.foo"] {
            assert!(!filter(text).matches(subject.as_bytes()), "{text} {subject:?}");
        }
    }
}

#[test]
fn the_literal_prefix_ends_before_the_first_wildcard() {
    for (text, prefix) in
        [("a.b", "a.b"), ("a.b.*", "a.b."), ("a.*.b", "a."), (">", ""), ("*.a", ""), ("a*.>", "a*.")]
    {
        assert_eq!(filter(text).literal_prefix(), prefix);
    }
}

#[test]
fn serde_checks_what_it_reads() {
    assert_eq!(serde_json::to_string(&filter("a.*")).unwrap(), r#""a.*""#);
    assert_eq!(serde_json::from_str::<Filter>(r#""a.*""#).unwrap(), filter("a.*"));
    assert!(serde_json::from_str::<Filter>(r#""a..b""#).is_err());
    assert!(serde_json::from_str::<Subject>(r#""a.*""#).is_err());
}

#[test]
fn a_subject_of_thousands_of_tokens_is_like_any_other() {
    let long = vec!["a"; 100_000].join(".");

    assert!(filter(&long).matches(long.as_bytes()));
    assert!(filter(">").matches(long.as_bytes()));
    assert!(filter(&long).collides(&filter("a.>")));
    assert!(filter(&long).is_subset_of(&filter("*.>")));
}

/// Every literal subject of up to four tokens over three letters: the filters below name two letters, so the third
/// stands for all other tokens, and none is longer than three tokens, so the fourth stands for all longer subjects.
fn universe() -> Vec<String> {
    let mut all = Vec::new();
    let mut longest = vec![String::new()];
    for _ in 0..4 {
        longest = longest
            .iter()
            .flat_map(|front| {
                ["a", "b", "c"].map(|token| match front.as_str() {
                    "" => token.to_owned(),
                    front => format!("{front}.{token}"),
                })
            })
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let token = prop::sample::select(vec!["a", "b", "*"]);
    let last = prop::sample::select(vec!["a", "b", "*", ">"]);
    (prop::collection::vec(token, 0..3), last).prop_map(|(mut tokens, last)| {
        tokens.push(last);
        filter(&tokens.join("."))
    })
}

proptest! {
    #[test]
    fn filters_collide_if_some_subject_matches_both(one in any_filter(), other in any_filter()) {
        let expected = universe().iter().any(|subject| {
            one.matches(subject.as_bytes()) && other.matches(subject.as_bytes())
        });
        prop_assert_eq!(one.collides(&other), expected);
        prop_assert_eq!(other.collides(&one), expected);
    }

    #[test]
    fn a_subset_matches_nothing_that_the_superset_does_not(one in any_filter(), other in any_filter()) {
        let expected = universe().iter().all(|subject| {
            !one.matches(subject.as_bytes()) || other.matches(subject.as_bytes())
        });
        prop_assert_eq!(one.is_subset_of(&other), expected);
    }

    #[test]
    fn matching_is_what_a_recursive_definition_says(one in any_filter(), at in any::<prop::sample::Index>()) {
        fn naive(pattern: &[&str], subject: &[&str]) -> bool {
            match (pattern, subject) {
                ([], []) => true,
                ([">"], [_, ..]) => true,
                ([first, pattern @ ..], [token, subject @ ..]) => {
                    (*first == "*" || first == token) && naive(pattern, subject)
                }
                _ => false,
            }
        }
        let universe = universe();
        let subject = at.get(&universe);
        let pattern: Vec<_> = one.tokens().collect();
        let tokens: Vec<_> = subject.split('.').collect();
        prop_assert_eq!(one.matches(subject.as_bytes()), naive(&pattern, &tokens));
        prop_assert_eq!(matches(one.as_bytes(), subject.as_bytes()), naive(&pattern, &tokens));
    }

    #[test]
    fn every_match_starts_with_the_literal_prefix(one in any_filter()) {
        for subject in universe().iter().filter(|subject| one.matches(subject.as_bytes())) {
            prop_assert!(subject.starts_with(one.literal_prefix()));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        one in prop::collection::vec(prop::sample::select(b"ab.*> \xff\0".to_vec()), 0..12),
        other in prop::collection::vec(prop::sample::select(b"ab.*>".to_vec()), 0..12),
    ) {
        let _ = (is_valid_literal(&one), is_valid_filter(&one), matches(&one, &other), collides(&one, &other));
        let _ = (is_subset(&one, &other), Filter::parse(&one).is_ok_and(|filter| filter.literal_prefix().is_empty()));
    }
}
