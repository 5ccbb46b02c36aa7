//! The meta machine as its users see it.

use levee_protocol::api::{AccountLimits, Placement, StorageType, StreamConfig, StreamSource};
use levee_protocol::command::MetaCommand;
use levee_protocol::command::meta::{NodeRegistration, StreamAssignment};
use levee_protocol::ids::{AccountName, GroupId, NodeId, StreamName};
use levee_protocol::time::Timestamp;
use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn cluster(nodes: u64) -> MetaMachine {
    let mut meta = MetaMachine::new();
    for id in 1..=nodes {
        assert_eq!(meta.apply(id, &register(id, &format!("n{id}"), "127.0.0.1:1")), MetaReply::Registered);
    }
    meta
}

fn register(id: u64, name: &str, cluster_address: &str) -> MetaCommand {
    let node = NodeRegistration {
        id: NodeId(id),
        name: name.into(),
        cluster_address: cluster_address.into(),
        tags: Vec::new(),
        unique_tag: String::new(),
    };
    MetaCommand::RegisterNode { now: NOW, node }
}

fn config(name: &str, subjects: &[&str], num_replicas: i32) -> StreamConfig {
    let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
    StreamConfig { name: name.into(), subjects, num_replicas, ..StreamConfig::default() }
}

fn alive(nodes: &[u64]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn create(meta: &mut MetaMachine, config: &StreamConfig, nodes: &[u64]) -> MetaReply {
    let config = Box::new(config.clone());
    meta.apply(
        9,
        &MetaCommand::CreateStream {
            now: NOW,
            account: AccountName::global(),
            config,
            alive: alive(nodes),
            limits: AccountLimits::default(),
            restoring: false,
        },
    )
}

fn restore(meta: &mut MetaMachine, config: &StreamConfig, nodes: &[u64]) -> MetaReply {
    let (account, config) = (AccountName::global(), Box::new(config.clone()));
    let command = MetaCommand::CreateStream {
        now: NOW,
        account,
        config,
        alive: alive(nodes),
        limits: AccountLimits::default(),
        restoring: true,
    };
    meta.apply(9, &command)
}

#[test]
fn a_stream_that_is_restored_holds_its_name_and_subjects_and_is_hidden_until_it_is_complete() {
    let mut meta = cluster(1);
    let (config, account) = (config("A", &["a"], 1), AccountName::global());
    let end = |meta: &mut MetaMachine, group, complete| {
        meta.apply(9, &MetaCommand::EndRestore { now: NOW, group, complete })
    };
    let first = created(restore(&mut meta, &config, &[1]));

    assert_eq!(meta.streams(&account).count(), 0);
    assert_eq!(refusal(create(&mut meta, &config, &[1])).0, 10058);
    match restore(&mut meta, &config, &[1]) {
        MetaReply::Exists(again) => assert_eq!(*again, first, "whoever did not hear of it goes on"),
        other => panic!("{other:?}"),
    }
    let other = StreamConfig { max_msgs: 5, ..config.clone() };
    assert_eq!(refusal(restore(&mut meta, &other, &[1])).0, 10130);
    assert_eq!(refusal(update(&mut meta, &config, &[1])).0, 10059);
    assert_eq!(refusal(create(&mut meta, &self::config("B", &["a"], 1), &[1])).0, 10065);
    assert!(matches!(end(&mut meta, first.group, false), MetaReply::Deleted(_)));
    assert_eq!(refusal(end(&mut meta, first.group, true)).0, 10059);

    let second = created(restore(&mut meta, &config, &[1]));
    assert!(matches!(end(&mut meta, second.group, true), MetaReply::Updated { .. }));
    assert_eq!(meta.streams(&account).count(), 1);
    assert_eq!(refusal(end(&mut meta, second.group, false)).0, 10059);
    assert_eq!(refusal(restore(&mut meta, &config, &[1])).0, 10130, "now it is there");
}

fn update(meta: &mut MetaMachine, config: &StreamConfig, nodes: &[u64]) -> MetaReply {
    let config = Box::new(config.clone());
    meta.apply(
        9,
        &MetaCommand::UpdateStream {
            now: NOW,
            account: AccountName::global(),
            config,
            alive: alive(nodes),
            limits: AccountLimits::default(),
        },
    )
}

fn delete(meta: &mut MetaMachine, name: &str) -> MetaReply {
    let name = StreamName::parse(name).unwrap();
    meta.apply(9, &MetaCommand::DeleteStream { now: NOW, account: AccountName::global(), name })
}

fn created(reply: MetaReply) -> StreamAssignment {
    match reply {
        MetaReply::Created(assignment) => *assignment,
        other => panic!("not created: {other:?}"),
    }
}

fn refusal(reply: MetaReply) -> (u16, String) {
    match reply {
        MetaReply::Rejected(error) => (error.err_code, error.description),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_group_number_is_never_used_twice() {
    let mut meta = cluster(1);

    let first = created(create(&mut meta, &config("A", &["a"], 1), &[1]));
    assert!(matches!(delete(&mut meta, "A"), MetaReply::Deleted(_)));
    let second = created(create(&mut meta, &config("A", &["a"], 1), &[1]));

    assert_eq!((first.group, second.group), (GroupId(16), GroupId(17)));
    assert_eq!(meta.stream_of_group(GroupId(16)), None);
    assert_eq!(meta.stream_of_group(GroupId(17)), Some(&second));
}

#[test]
fn the_same_stream_again_is_the_existing_one_and_a_different_one_is_refused() {
    let mut meta = cluster(3);
    let first = created(create(&mut meta, &config("A", &["a"], 3), &[1, 2, 3]));

    let again = create(&mut meta, &config("A", &["a"], 3), &[1]);
    assert_eq!(again, MetaReply::Exists(Box::new(first)), "alive nodes do not matter any more");

    let different = create(&mut meta, &config("A", &["b"], 3), &[1, 2, 3]);
    assert_eq!(refusal(different).0, 10058);
}

#[test]
fn subjects_of_two_streams_of_an_account_do_not_overlap() {
    let mut meta = cluster(1);
    created(create(&mut meta, &config("A", &["orders.*"], 1), &[1]));

    assert_eq!(refusal(create(&mut meta, &config("B", &["x", "orders.eu"], 1), &[1])).0, 10065);
    let b = created(create(&mut meta, &config("B", &["orders.eu.berlin"], 1), &[1]));
    assert_eq!(refusal(update(&mut meta, &config("B", &["*.eu"], 1), &[1])).0, 10065);

    let account = AccountName::global();
    assert_eq!(meta.stream_for_subject(&account, b"orders.eu.berlin"), Some(&b));
    assert_eq!(meta.stream_for_subject(&account, b"orders.eu").map(|a| a.config.name.as_str()), Some("A"));
    assert_eq!(meta.stream_for_subject(&account, b"nothing"), None);
    assert_eq!(meta.stream_for_subject(&AccountName::system(), b"orders.eu"), None);
}

#[test]
fn replicas_need_nodes() {
    let mut meta = cluster(3);
    let none = (10005, "no suitable peers for placement".to_owned());
    assert_eq!(refusal(create(&mut meta, &config("A", &["a"], 5), &[1, 2, 3])), none);
    assert_eq!(refusal(create(&mut meta, &config("A", &["a"], 3), &[1, 3])), none, "2 is not alive");
    assert_eq!(refusal(create(&mut meta, &config("A", &["a"], 2), &[1, 77])), none, "77 is not a member");

    let mut tagged = config("A", &["a"], 1);
    tagged.placement = Some(Placement { tags: vec!["nope".into()], ..Placement::default() });
    let text = "no suitable peers for placement, tags not matched ['nope']";
    assert_eq!(refusal(create(&mut meta, &tagged, &[1, 2, 3])), (10005, text.to_owned()));
}

/// Nodes in two zones each of which has a fast one.
fn tagged_cluster(unique_tag: &str) -> MetaMachine {
    let mut meta = MetaMachine::new();
    let tags: [&[&str]; 4] = [&["az:a", "fast"], &["az:a"], &["az:b", "fast"], &["az:b"]];
    for (id, tags) in (1..).zip(tags) {
        let node = NodeRegistration {
            id: NodeId(id),
            name: format!("n{id}"),
            cluster_address: "127.0.0.1:1".to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            unique_tag: unique_tag.to_owned(),
        };
        meta.apply(id, &MetaCommand::RegisterNode { now: NOW, node });
    }
    meta
}

fn placed(name: &str, num_replicas: i32, tags: &[&str]) -> StreamConfig {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    let placement = Some(Placement { tags, ..Placement::default() });
    StreamConfig { placement, ..config(name, &[name], num_replicas) }
}

#[test]
fn streams_are_where_their_tags_are_and_move_with_them() {
    let mut meta = tagged_cluster("");
    let all = [1, 2, 3, 4];

    created(create(&mut meta, &placed("FAST", 2, &["FAST"]), &all));
    assert_eq!(replicas(&meta, "FAST"), [1, 3]);
    created(create(&mut meta, &placed("SLOW", 2, &["!fast"]), &all));
    assert_eq!(replicas(&meta, "SLOW"), [2, 4]);
    created(create(&mut meta, &placed("BOTH", 1, &["az:b", "fast"]), &all));
    assert_eq!(replicas(&meta, "BOTH"), [3]);
    let text = "no suitable peers for placement, tags not matched ['az:b', 'fast']";
    let refused = refusal(create(&mut meta, &placed("X", 2, &["az:b", "fast"]), &all));
    assert_eq!(refused, (10005, text.to_owned()));

    update(&mut meta, &placed("FAST", 2, &["az:b"]), &all);
    assert_eq!(replicas(&meta, "FAST"), [3, 4], "what fits stays");
    assert_eq!(refusal(move_replica(&mut meta, "FAST", 3, &all)).0, 10075, "nobody else fits");
}

#[test]
fn a_node_that_runs_alone_has_every_stream() {
    let mut meta = MetaMachine::new();
    meta.apply(1, &register(1, "n1", ""));

    let made = created(create(&mut meta, &placed("A", 1, &["nowhere", "!else"]), &[1]));
    assert_eq!(made.replicas, alive(&[1]));
}

#[test]
fn replicas_are_in_different_zones_if_that_is_configured_and_the_stream_does_not_choose_one() {
    let mut meta = tagged_cluster("az:");
    let all = [1, 2, 3, 4];

    for name in ["A", "B", "C"] {
        created(create(&mut meta, &config(name, &[name], 2), &all));
        let replicas = replicas(&meta, name);
        assert!(replicas[0] <= 2 && replicas[1] >= 3, "{replicas:?}");
    }
    assert_eq!(refusal(create(&mut meta, &config("X", &["x"], 3), &all)).0, 10005);
    created(create(&mut meta, &placed("NAMED", 2, &["az:b"]), &all));
    assert_eq!(replicas(&meta, "NAMED"), [3, 4]);
}

#[test]
fn scaling_keeps_the_nodes_that_hold_the_stream() {
    let mut meta = cluster(3);
    let first = created(create(&mut meta, &config("A", &["a"], 1), &[2, 3]));
    assert_eq!(first.replicas, alive(&[2]));

    let MetaReply::Updated { assignment, replicas_before } =
        update(&mut meta, &config("A", &["a"], 3), &[1, 2, 3])
    else {
        panic!("refused");
    };
    assert_eq!((assignment.replicas.clone(), replicas_before), (alive(&[2, 1, 3]), alive(&[2])));
    assert_eq!((assignment.revision, assignment.group), (2, first.group));
    end_move(&mut meta, "A", &assignment.replicas);

    let MetaReply::Updated { assignment, .. } = update(&mut meta, &config("A", &["a"], 1), &[1, 2, 3]) else {
        panic!("refused");
    };
    assert_eq!(assignment.replicas, alive(&[2]));
}

#[test]
fn an_update_that_changes_nothing_is_not_a_new_revision() {
    let mut meta = cluster(1);
    created(create(&mut meta, &config("A", &["a"], 1), &[1]));

    let MetaReply::Updated { assignment, .. } = update(&mut meta, &config("A", &["a"], 1), &[1]) else {
        panic!("refused")
    };

    assert_eq!(assignment.revision, 1);
    assert_eq!(refusal(update(&mut meta, &config("X", &["x"], 1), &[1])).0, 10059);
    assert_eq!(refusal(delete(&mut meta, "X")).0, 10059);
}

#[test]
fn a_node_name_belongs_to_one_node_until_it_leaves() {
    let mut meta = cluster(2);

    assert_eq!(meta.apply(3, &register(3, "n1", "x:1")), MetaReply::NameTaken { by: NodeId(1) });
    assert_eq!(meta.apply(4, &register(1, "n1", "moved:1")), MetaReply::Registered);
    assert_eq!(meta.node(NodeId(1)).unwrap().cluster_address, "moved:1");
    assert_eq!(remove(&mut meta, 1, &[2]), MetaReply::Removed);
    assert_eq!(meta.apply(6, &register(3, "n1", "x:1")), MetaReply::Registered);
    assert_eq!(meta.apply(7, &register(1, "again", "x:1")), MetaReply::WasRemoved, "for good");
}

fn remove(meta: &mut MetaMachine, node: u64, nodes: &[u64]) -> MetaReply {
    meta.apply(9, &MetaCommand::RemoveNode { now: NOW, node: NodeId(node), alive: alive(nodes) })
}

fn evacuate(meta: &mut MetaMachine, node: u64, nodes: &[u64]) -> MetaReply {
    meta.apply(9, &MetaCommand::EvacuateNode { now: NOW, node: NodeId(node), alive: alive(nodes) })
}

fn fill_up(meta: &mut MetaMachine, nodes: &[u64]) {
    assert_eq!(meta.apply(9, &MetaCommand::FillUp { now: NOW, alive: alive(nodes) }), MetaReply::FilledUp);
}

fn move_replica(meta: &mut MetaMachine, stream: &str, from: u64, nodes: &[u64]) -> MetaReply {
    let name = StreamName::parse(stream).unwrap();
    let (account, from, alive) = (AccountName::global(), NodeId(from), alive(nodes));
    meta.apply(9, &MetaCommand::MoveReplica { now: NOW, account, name, from, alive })
}

fn replicas(meta: &MetaMachine, stream: &str) -> Vec<u64> {
    let name = StreamName::parse(stream).unwrap();
    let assignment = meta.stream(&AccountName::global(), &name).unwrap();
    let mut replicas: Vec<u64> = assignment.replicas.iter().map(|node| node.0).collect();
    replicas.sort_unstable();
    replicas
}

#[test]
fn a_replica_goes_to_another_node_if_there_is_one_and_who_holds_it_is_there() {
    let mut meta = cluster(4);
    let made = created(create(&mut meta, &config("A", &["a"], 3), &[1, 2, 3]));

    assert_eq!(refusal(move_replica(&mut meta, "X", 1, &[1, 2, 3, 4])).0, 10059);
    assert_eq!(refusal(move_replica(&mut meta, "A", 4, &[1, 2, 3, 4])).0, 10040);
    assert_eq!(refusal(move_replica(&mut meta, "A", 3, &[1, 2, 3])).0, 10075, "4 is not alive");
    assert_eq!(refusal(move_replica(&mut meta, "A", 3, &[1, 4])).0, 10075, "a majority is gone");
    let MetaReply::Updated { assignment, replicas_before } = move_replica(&mut meta, "A", 3, &[1, 2, 4])
    else {
        panic!("refused")
    };

    assert_eq!(replicas(&meta, "A"), [1, 2, 4]);
    assert_eq!(replicas_before, made.replicas);
    assert!(assignment.replicas_changed && assignment.revision == 2);
    assert_eq!(refusal(move_replica(&mut meta, "A", 3, &[1, 2, 3, 4])).0, 10040, "it went");
}

fn move_stream(meta: &mut MetaMachine, stream: &str, from: Option<u64>, nodes: &[u64]) -> MetaReply {
    let (account, name) = (AccountName::global(), StreamName::parse(stream).unwrap());
    let (from, alive, tags) = (from.map(NodeId), alive(nodes), Vec::new());
    meta.apply(9, &MetaCommand::MoveStream { now: NOW, account, name, from, tags, alive })
}

fn cancel_move(meta: &mut MetaMachine, stream: &str) -> MetaReply {
    let (account, name) = (AccountName::global(), StreamName::parse(stream).unwrap());
    meta.apply(9, &MetaCommand::CancelMove { now: NOW, account, name })
}

fn end_move(meta: &mut MetaMachine, stream: &str, at: &[NodeId]) {
    let group = assignment(meta, stream).group;
    let ended = meta.apply(9, &MetaCommand::EndMove { now: NOW, group, replicas: at.to_vec() });
    assert_eq!(ended, MetaReply::MoveEnded);
}

fn assignment(meta: &MetaMachine, stream: &str) -> StreamAssignment {
    meta.stream(&AccountName::global(), &StreamName::parse(stream).unwrap()).unwrap().clone()
}

#[test]
fn a_move_can_be_taken_back_until_the_stream_has_arrived() {
    let mut meta = cluster(4);
    let all = [1, 2, 3, 4];
    let before = created(create(&mut meta, &config("A", &["a"], 3), &[1, 2, 3])).replicas;
    assert_eq!(refusal(cancel_move(&mut meta, "A")).0, 10129);
    assert_eq!(refusal(cancel_move(&mut meta, "X")).0, 10059);
    assert_eq!(refusal(move_stream(&mut meta, "A", Some(4), &all)).0, 10040);
    assert_eq!(refusal(move_stream(&mut meta, "A", Some(1), &[1, 2, 3])).0, 10005, "4 is not alive");

    assert!(matches!(move_stream(&mut meta, "A", None, &all), MetaReply::Updated { .. }));
    assert_eq!(assignment(&meta, "A").replicas[..2], before[..2], "who leads by preference stays");
    assert_eq!(refusal(move_stream(&mut meta, "A", Some(4), &all)).0, 10124);
    assert_eq!(refusal(update(&mut meta, &config("A", &["a"], 1), &all)).0, 10124);
    update(&mut meta, &config("A", &["a", "b"], 3), &all);
    assert!(matches!(cancel_move(&mut meta, "A"), MetaReply::Updated { .. }));
    assert_eq!(assignment(&meta, "A").replicas, before);
    assert_eq!(assignment(&meta, "A").config.subjects, ["a", "b"], "the rest of it stays");

    end_move(&mut meta, "A", &alive(&[2, 3, 4]));
    assert!(assignment(&meta, "A").moving.is_some(), "it has not been there");
    end_move(&mut meta, "A", &before);
    assert_eq!(assignment(&meta, "A").moving, None);
    assert_eq!(refusal(cancel_move(&mut meta, "A")).0, 10129);
}

#[test]
fn scaling_and_placing_anew_can_be_taken_back_too_but_not_a_removal() {
    let mut meta = cluster(4);
    let all = [1, 2, 3, 4];
    let before = created(create(&mut meta, &config("A", &["a"], 1), &all));

    update(&mut meta, &config("A", &["a"], 3), &all);
    assert_eq!(refusal(move_stream(&mut meta, "A", None, &all)).0, 10226);
    assert!(matches!(cancel_move(&mut meta, "A"), MetaReply::Updated { .. }));
    let after = assignment(&meta, "A");
    assert_eq!((after.replicas.clone(), &after.config), (before.replicas.clone(), &before.config));
    end_move(&mut meta, "A", &before.replicas);

    // What is removed has to go. That keeps nobody from scaling the stream.
    move_replica(&mut meta, "A", before.replicas[0].0, &all);
    assert!(assignment(&meta, "A").moving.is_some());
    assert_eq!(refusal(cancel_move(&mut meta, "A")).0, 10129);
    assert!(matches!(update(&mut meta, &config("A", &["a"], 3), &all), MetaReply::Updated { .. }));

    // Who was removed in the meantime does not come back.
    let held = assignment(&meta, "A").replicas;
    end_move(&mut meta, "A", &held);
    update(&mut meta, &config("A", &["a"], 1), &all);
    let (stays, goes) = (held[0], held[1]);
    remove(&mut meta, goes.0, &all);
    assert!(matches!(cancel_move(&mut meta, "A"), MetaReply::Updated { .. }));
    let back = assignment(&meta, "A").replicas;
    assert!(back.contains(&stays) && !back.contains(&goes), "{back:?}");
    assert!(meta.can_fill_up(&alive(&all)), "it lacks one");
}

#[test]
fn a_stream_is_not_moved_and_scaled_at_once() {
    let mut meta = tagged_cluster("");
    let all = [1, 2, 3, 4];
    created(create(&mut meta, &placed("A", 1, &["az:b"]), &all));

    assert_eq!(refusal(update(&mut meta, &placed("A", 2, &["az:a"]), &all)).0, 10123);
    let anywhere = update(&mut meta, &config("A", &["A"], 2), &all);
    assert!(matches!(anywhere, MetaReply::Updated { .. }), "{anywhere:?}");
}

#[test]
fn a_node_is_emptied_as_far_as_others_can_take_what_it_has_and_stays() {
    let mut meta = cluster(4);
    created(create(&mut meta, &config("THREE", &["a"], 3), &[1, 2, 3]));
    created(create(&mut meta, &config("ALL", &["b"], 4), &[1, 2, 3, 4]));
    created(create(&mut meta, &config("ONE", &["c"], 1), &[3]));

    assert_eq!(evacuate(&mut meta, 3, &[1, 2, 3, 4]), MetaReply::Evacuated);

    assert_eq!(replicas(&meta, "THREE"), [1, 2, 4]);
    assert_eq!(replicas(&meta, "ALL"), [1, 2, 3, 4], "nobody is left to take it");
    assert_ne!(replicas(&meta, "ONE"), [3]);
    assert!(meta.node(NodeId(3)).is_some());
    assert!(!meta.can_fill_up(&alive(&[1, 2, 3, 4])));
}

#[test]
fn a_removed_node_leaves_its_replicas_to_others_and_what_is_missing_is_filled_up_later() {
    let mut meta = cluster(3);
    created(create(&mut meta, &config("THREE", &["a"], 3), &[1, 2, 3]));
    created(create(&mut meta, &config("ONE", &["b"], 1), &[3]));

    remove(&mut meta, 3, &[1, 2]);
    assert_eq!(replicas(&meta, "THREE"), [1, 2], "one less");
    assert_eq!(replicas(&meta, "ONE"), [3], "nobody else has what it holds");
    assert!(!meta.can_fill_up(&alive(&[1, 2])));

    meta.apply(9, &register(4, "n3", "x:1"));
    assert!(meta.can_fill_up(&alive(&[1, 2, 4])));
    fill_up(&mut meta, &[1, 2, 4]);
    assert_eq!(replicas(&meta, "THREE"), [1, 2, 4]);
    assert_eq!(replicas(&meta, "ONE"), [3], "it is not there to hand it over");
    assert!(!meta.can_fill_up(&alive(&[1, 2, 4])));

    fill_up(&mut meta, &[1, 2, 3, 4]);
    assert_ne!(replicas(&meta, "ONE"), [3], "it came back with its disk, though it is no member any more");
    let loaded = MetaMachine::load(meta.all_rows().into_iter()).unwrap();
    assert!(loaded.was_removed(NodeId(3)));
}

#[test]
fn a_stream_that_lost_its_majority_stays_where_it_is_when_a_node_is_removed() {
    let mut meta = cluster(4);
    created(create(&mut meta, &config("A", &["a"], 3), &[1, 2, 3]));

    remove(&mut meta, 3, &[1, 4]);
    assert_eq!(replicas(&meta, "A"), [1, 2, 3], "only 1 of them is alive");

    fill_up(&mut meta, &[1, 2, 4]);
    assert_eq!(replicas(&meta, "A"), [1, 2, 4], "2 came back");
}

proptest! {
    #[test]
    fn rows_rebuild_the_machine(steps in prop::collection::vec((0_u8..7, 0_usize..5, 1_i32..4), 0..40)) {
        let mut meta = cluster(5);
        let mut stored = std::collections::BTreeMap::new();
        for (index, (step, stream, replicas)) in steps.into_iter().enumerate() {
            let name = format!("S{stream}");
            let config = config(&name, &[&format!("s.{stream}.{replicas}")], replicas);
            match step {
                0 | 1 => create(&mut meta, &config, &[1, 2, 3]),
                2 => update(&mut meta, &config, &[1, 2, 3]),
                3 => evacuate(&mut meta, 1, &[1, 2, 3, 4]),
                4 => remove(&mut meta, stream as u64 + 1, &[2, 3, 4, 5]),
                5 => move_replica(&mut meta, &name, 2, &[1, 2, 3, 5]),
                _ => delete(&mut meta, &name),
            };
            if index % 3 == 0 {
                keep(&mut stored, meta.dirty_rows());
            }
        }
        keep(&mut stored, meta.dirty_rows());

        let mut rows: Vec<StateRow> = stored.into_values().collect();
        rows.sort();
        let mut all = meta.all_rows();
        all.sort();
        prop_assert_eq!(&rows, &all);
        let loaded = MetaMachine::load(rows.into_iter()).unwrap();
        prop_assert_eq!(&loaded.lacking, &meta.lacking);
        let mut again = loaded.all_rows();
        again.sort();
        prop_assert_eq!(&again, &all);
        let account = AccountName::global();
        for assignment in meta.streams(&account) {
            let subject = assignment.config.subjects[0].as_bytes();
            prop_assert_eq!(loaded.stream_for_subject(&account, subject), Some(assignment));
        }
    }
}

use crate::rows::{RowKind, StateRow};

fn keep(stored: &mut std::collections::BTreeMap<(RowKind, Vec<u8>), StateRow>, rows: Vec<StateRow>) {
    for row in rows {
        let key = (row.kind, row.key.clone());
        if row.value.is_some() {
            stored.insert(key, row);
        } else {
            stored.remove(&key);
        }
    }
}

#[test]
fn who_follows_the_streams_hears_of_each_that_changed() {
    let mut meta = cluster(1);
    assert_eq!(meta.take_touched(), Touched::All, "whoever starts knows nothing");
    let touched = |meta: &mut MetaMachine| match meta.take_touched() {
        Touched::Groups(groups) => groups.into_iter().map(|group| group.0).collect::<Vec<_>>(),
        Touched::All => panic!("only some changed"),
    };

    create(&mut meta, &config("A", &["a"], 1), &[1]);
    create(&mut meta, &config("B", &["b"], 1), &[1]);
    assert_eq!(touched(&mut meta), [16, 17]);
    update(&mut meta, &config("B", &["b", "c"], 1), &[1]);
    assert_eq!(touched(&mut meta), [17]);
    delete(&mut meta, "A");
    assert_eq!(touched(&mut meta), [16]);
    refusal(create(&mut meta, &config("C", &["b"], 1), &[1]));
    assert_eq!(touched(&mut meta), [0_u64; 0]);

    let mut loaded = MetaMachine::load(meta.all_rows().into_iter()).unwrap();
    assert_eq!(loaded.take_touched(), Touched::All);
}

#[test]
fn streams_of_one_name_are_never_created_at_the_same_time() {
    let mut meta = cluster(1);
    let first = created(create(&mut meta, &config("A", &["a"], 1), &[1]));
    delete(&mut meta, "A");
    let second = created(create(&mut meta, &config("A", &["a"], 1), &[1]));

    assert!(second.created > first.created);
}

#[test]
fn the_mirrors_of_a_stream_are_known_while_they_mirror_it() {
    let mut meta = cluster(1);
    let (account, origin) = (AccountName::global(), StreamName::parse("A").unwrap());
    let names = |meta: &MetaMachine| -> Vec<String> {
        meta.mirrors_of(&account, &origin).map(|mirror| mirror.config.name.clone()).collect()
    };
    let mirror = |of: Option<&str>| {
        let mirror = of.map(|name| StreamSource { name: name.into(), ..StreamSource::default() });
        StreamConfig { mirror, ..config("M", &[], 1) }
    };
    created(create(&mut meta, &mirror(Some("A")), &[1]));
    assert_eq!(names(&meta), ["M"]);
    assert_eq!(names(&MetaMachine::load(meta.all_rows().into_iter()).unwrap()), ["M"]);

    update(&mut meta, &mirror(None), &[1]);
    assert_eq!(names(&meta), [""; 0]);
    delete(&mut meta, "M");
    created(create(&mut meta, &mirror(Some("B")), &[1]));
    assert_eq!(names(&meta), [""; 0]);
}

#[test]
fn an_account_is_promised_no_more_than_it_may_have() {
    let mut meta = cluster(3);
    let limits = AccountLimits { max_streams: 3, max_storage: 1000, ..AccountLimits::default() };
    let with = |name: &str, max_bytes, num_replicas| {
        Box::new(StreamConfig { max_bytes, ..config(name, &[name], num_replicas) })
    };
    let mut create = |account: &str, config: Box<StreamConfig>| {
        let account = AccountName::parse(account).unwrap();
        let alive = alive(&[1, 2, 3]);
        match meta.apply(
            9,
            &MetaCommand::CreateStream { now: NOW, account, config, alive, limits, restoring: false },
        ) {
            MetaReply::Rejected(error) => Some(error.err_code),
            _ => None,
        }
    };

    assert_eq!(create("A", with("a", 200, 3)), None);
    assert_eq!(create("A", with("b", 401, 1)), Some(10047), "600 of 1000 are promised");
    assert_eq!(create("B", with("b", 401, 1)), None, "an account of its own");
    assert_eq!(create("A", with("b", 400, 1)), None);
    assert_eq!(create("A", with("c", -1, 1)), Some(10047), "a stream without a bound takes something, too");
    assert_eq!(create("A", with("a", 200, 3)), None, "it exists");
    let in_memory = Box::new(StreamConfig { storage: StorageType::Memory, ..*with("m", 9999, 1) });
    assert_eq!(create("A", in_memory), None, "memory is not bounded");
    assert_eq!(create("A", with("d", 1, 1)), Some(10027));

    let mut update = |max_bytes, num_replicas| {
        let (account, config) = (AccountName::parse("A").unwrap(), with("a", max_bytes, num_replicas));
        match meta.apply(
            9,
            &MetaCommand::UpdateStream { now: NOW, account, config, alive: alive(&[1, 2, 3]), limits },
        ) {
            MetaReply::Rejected(error) => Some(error.err_code),
            _ => None,
        }
    };
    assert_eq!(update(201, 3), Some(10047));
    assert_eq!(update(100, 3), None);
    assert_eq!(update(200, 3), None);
}
