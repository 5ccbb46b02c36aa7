use proptest::prelude::*;

use super::*;

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap()
}

fn group(text: &str) -> GroupFilter {
    match text.split_once(' ') {
        None => GroupFilter { filter: filter(text), queue: None },
        Some((subjects, queue)) => GroupFilter { filter: filter(subjects), queue: Some(filter(queue)) },
    }
}

fn publishing(allow: &[&str], deny: &[&str]) -> Permissions {
    let filters = |list: &[&str]| list.iter().map(|text| filter(text)).collect();
    Permissions::new(Grant {
        publish: PublishGrant { allow: filters(allow), deny: filters(deny) },
        ..Grant::default()
    })
}

fn subscribing(allow: &[&str], deny: &[&str]) -> Permissions {
    let groups = |list: &[&str]| list.iter().map(|text| group(text)).collect();
    Permissions::new(Grant {
        subscribe: SubscribeGrant { allow: groups(allow), deny: groups(deny) },
        ..Grant::default()
    })
}

#[test]
fn nothing_written_is_nothing_refused() {
    let all = Permissions::new(Grant::default());

    assert!(all.may_publish(b"a") && all.may_publish(b"a..b") && all.may_publish(b"$JS.ACK.x"));
    assert!(all.may_subscribe(b">", b"") && all.may_subscribe(b"a", b"q"));
    assert!(!all.narrows(b">", b"") && !all.denies_delivery(b"a", b""));
}

#[test]
fn what_is_denied_is_denied_even_if_it_is_allowed() {
    let some = publishing(&["foo.*", "bar.>"], &["foo.no", "bar.*.no"]);

    for (subject, expected) in [
        ("foo.a", true),
        ("foo.no", false),
        ("foo.a.b", false),
        ("foo", false),
        ("bar.a", true),
        ("bar.a.no", false),
        ("bar.a.no.b", true),
        // As published, wildcards are letters.
        ("foo.*", true),
        ("foo.>", true),
        ("foo..x", false),
        ("", false),
    ] {
        assert_eq!(some.may_publish(subject.as_bytes()), expected, "{subject:?}");
    }
    assert!(publishing(&[], &["a.>"]).may_publish(b"a") && !publishing(&[], &["a.>"]).may_publish(b"a.b"));
}

#[test]
fn who_may_answer_may_publish_nothing_else_by_itself() {
    let answering = |allow: &[&str]| {
        let allow = allow.iter().map(|text| filter(text)).collect();
        let publish = PublishGrant { allow, deny: vec![filter("n")] };
        Permissions::new(Grant { publish, responses: Some(Responses::default()), ..Grant::default() })
    };

    assert!(!answering(&[]).may_publish(b"a"));
    assert!(answering(&["a"]).may_publish(b"a") && !answering(&["a"]).may_publish(b"b"));
    assert!(!answering(&["n"]).may_publish(b"n"));
}

#[test]
fn a_subscription_is_judged_by_its_filter_as_a_whole() {
    let some = subscribing(&["foo.*", "bar.>"], &["foo.no", "bar.x.*"]);

    for (wanted, expected) in [
        ("foo.a", true),
        ("foo.*", true),
        ("foo.no", false),
        ("foo.>", false),
        ("*", false),
        (">", false),
        ("bar.>", true),
        ("bar.*.>", true),
        ("bar.x.*", false),
        ("bar.x.y", false),
        // Wider than what is denied, but so written that nats-server takes it for the same.
        ("bar.x.>", false),
        ("bar.*.y", true),
        ("bar", false),
        ("foo..a", false),
    ] {
        assert_eq!(some.may_subscribe(wanted.as_bytes(), b""), expected, "{wanted:?}");
    }
}

#[test]
fn groups_that_are_named_for_a_subject_are_the_only_ones() {
    let some = subscribing(&["foo", "foo v1", "bar v1.*", "baz"], &["baz no", "qux"]);

    for (wanted, queue, expected) in [
        ("foo", "", true),
        ("foo", "v1", true),
        ("foo", "v2", false),
        ("bar", "", false),
        ("bar", "v1.a", true),
        ("bar", "v1.*", true),
        ("bar", "v1.>", false),
        ("bar", "v1", false),
        ("baz", "", true),
        ("baz", "any", true),
        ("baz", "no", false),
        ("qux", "any", false),
    ] {
        assert_eq!(some.may_subscribe(wanted.as_bytes(), queue.as_bytes()), expected, "{wanted} {queue:?}");
    }
}

#[test]
fn wider_subscriptions_hear_all_but_what_is_denied() {
    let some = subscribing(&[], &["foo.bar", "x.*", "q q9"]);

    assert!(some.narrows(b"foo.*", b"") && some.narrows(b">", b"") && some.narrows(b"*.y", b""));
    assert!(!some.narrows(b"other.>", b"") && !some.narrows(b"foo.baz", b""));
    assert!(some.narrows(b"q", b"q1") && !some.narrows(b"r", b"q1"));
    assert!(some.denies_delivery(b"foo.bar", b"") && some.denies_delivery(b"x.y", b"q1"));
    assert!(some.denies_delivery(b"q", b"q9") && !some.denies_delivery(b"q", b"q1"));
    assert!(!some.denies_delivery(b"q", b"") && !some.denies_delivery(b"foo.baz", b""));
}

#[test]
fn entries_are_shown_as_written() {
    assert_eq!(group("foo.> q.*").to_string(), "foo.> q.*");
    assert_eq!(group("foo").to_string(), "foo");
}

fn any_filter() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["a", "b", "*"]);
    let last = prop::sample::select(vec!["a", "b", "*", ">"]);
    (prop::collection::vec(token, 0..3), last).prop_map(|(mut tokens, last)| {
        tokens.push(last);
        tokens.join(".")
    })
}

fn any_subject() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..5).prop_map(|tokens| tokens.join("."))
}

fn any_entry() -> impl Strategy<Value = String> {
    let queue = prop::sample::select(vec!["", " q", " r.*", " *"]);
    (any_filter(), queue).prop_map(|(filter, queue)| filter + queue)
}

fn any_queue() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "q", "r.x", "s"])
}

/// Everything of one to three tokens.
fn up_to_three(tokens: &[&str], last: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut begun = vec![String::new()];
    for _ in 0..3 {
        all.extend(begun.iter().flat_map(|begun| last.iter().map(move |last| format!("{begun}{last}"))));
        begun = begun
            .iter()
            .flat_map(|begun| tokens.iter().map(move |token| format!("{begun}{token}.")))
            .collect();
    }
    all
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

proptest! {
    #[test]
    fn publishing_is_what_the_lists_say(
        allow in prop::collection::vec(any_filter(), 0..4),
        deny in prop::collection::vec(any_filter(), 0..4),
        subject in any_subject(),
    ) {
        let listed = |list: &[String]| list.iter().any(|text| filter(text).matches(subject.as_bytes()));
        let expected = (allow.is_empty() || listed(&allow)) && !listed(&deny);

        let some = publishing(&texts(&allow), &texts(&deny));

        prop_assert_eq!(some.may_publish(subject.as_bytes()), expected);
    }

    /// Whatever is subscribed to, nothing is heard that is not allowed, and nothing that is denied.
    #[test]
    fn nothing_is_heard_that_may_not_be_heard(
        allow in prop::collection::vec(any_entry(), 0..4),
        deny in prop::collection::vec(any_entry(), 0..4),
        queue in any_queue(),
    ) {
        let some = subscribing(&texts(&allow), &texts(&deny));
        let queue = queue.as_bytes();
        let entries = |list: &[String]| list.iter().map(|text| group(text)).collect::<Vec<_>>();
        let (allow, deny) = (entries(&allow), entries(&deny));
        let is_in = |list: &[GroupFilter], subject: &[u8]| {
            list.iter().any(|entry| {
                entry.filter.matches(subject) && (entry.queue.is_none() || entry.names(queue))
            })
        };
        for wanted in up_to_three(&["a", "b", "*"], &["a", "b", "*", ">"]) {
            let wanted = wanted.as_bytes();
            if !some.may_subscribe(wanted, queue) {
                continue;
            }
            let narrows = some.narrows(wanted, queue);
            for subject in up_to_three(&["a", "b", "c"], &["a", "b", "c"]) {
                let subject = subject.as_bytes();
                let is_heard = subject::matches(wanted, subject)
                    && !(narrows && some.denies_delivery(subject, queue));
                prop_assert!(!is_heard || allow.is_empty() || is_in(&allow, subject));
                prop_assert!(!is_heard || !is_in(&deny, subject));
            }
        }
    }

    #[test]
    fn a_subscription_that_may_be_made_is_within_one_entry(
        allow in prop::collection::vec(any_entry(), 1..5),
        wanted in any_filter(),
        queue in any_queue(),
    ) {
        let some = subscribing(&texts(&allow), &[]);
        let within: Vec<GroupFilter> = allow
            .iter()
            .map(|text| group(text))
            .filter(|entry| filter(&wanted).is_subset_of(&entry.filter))
            .collect();
        let has_groups = within.iter().any(|entry| entry.queue.is_some());
        let expected = within.iter().any(|entry| {
            if has_groups && !queue.is_empty() {
                entry.names(queue.as_bytes())
            } else {
                entry.queue.is_none()
            }
        });

        prop_assert_eq!(some.may_subscribe(wanted.as_bytes(), queue.as_bytes()), expected);
    }
}
