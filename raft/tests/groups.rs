//! Groups in one process: replication, failover, restarts, snapshots and members, on a local network and disks in
//! memory.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};
use levee_raft::{Birth, Error, Group, ProposeError};
use levee_storage::kind::INLINE;
use levee_storage::{MemoryDisk, Sync};
use support::{Cluster, ListMachine, ids, payload, put, put_somewhere, quick, until};

const GROUP: GroupId = GroupId(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_applies_and_finds_everything_again_after_a_crash() {
    let mut cluster = Cluster::new(1, quick());
    cluster.found(GROUP).await;
    cluster.leader(GROUP).await;
    for number in 0..20 {
        put(&cluster.nodes[&1].group(GROUP), format!("{number}")).await.unwrap();
    }

    let disk = cluster.kill(1);
    cluster.start(1, disk);
    cluster.nodes.get_mut(&1).unwrap().open(GROUP, Birth::Existing).await;
    cluster.leader(GROUP).await;

    let expected: Vec<_> = (0..20).map(|number| payload(format!("{number}"))).collect();
    assert_eq!(cluster.converged(GROUP, 20).await, expected);
    put(&cluster.nodes[&1].group(GROUP), "more").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leading_means_that_everything_before_is_applied() {
    let mut cluster = Cluster::new(1, quick());
    cluster.found(GROUP).await;
    cluster.leader(GROUP).await;
    let mut indexes = Vec::new();
    for number in 0..200 {
        indexes.push(put(&cluster.nodes[&1].group(GROUP), format!("{number}")).await.unwrap());
    }
    let disk = cluster.kill(1);
    cluster.start(1, disk);
    let group = cluster.nodes.get_mut(&1).unwrap().open(GROUP, Birth::Existing).await;

    group.leadership().wait_for(|now| now.leading).await.unwrap();

    assert_eq!(cluster.nodes[&1].payloads(GROUP).len(), 200);
    assert!(group.applied_next() > *indexes.last().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_apply_in_the_order_of_the_calls_with_many_under_way() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    let group = cluster.nodes[&leader].group(GROUP);

    let proposals: Vec<_> =
        (0..1000).map(|number| group.propose(INLINE, payload(format!("{number:04}")))).collect();
    let mut last = 0;
    for (number, proposal) in proposals.into_iter().enumerate() {
        let (index, reply) = proposal.await.unwrap();
        assert!(index > last);
        last = index;
        assert_eq!(*reply.downcast::<Bytes>().unwrap(), payload(format!("{number:04}")));
    }

    let expected: Vec<_> = (0..1000).map(|number| payload(format!("{number:04}"))).collect();
    assert_eq!(cluster.converged(GROUP, 1000).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_quickly_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::new(3, levee_raft::Config::default());
    cluster.found(GROUP).await;
    let first = cluster.leader(GROUP).await;
    for number in 0..50 {
        put(&cluster.nodes[&first].group(GROUP), format!("a{number:02}")).await.unwrap();
    }

    let died = Instant::now();
    let disk = cluster.kill(first);
    put_somewhere(&cluster, GROUP, "b").await;
    let failover = died.elapsed();
    cluster.start(first, disk);
    cluster.nodes.get_mut(&first).unwrap().open(GROUP, Birth::Existing).await;
    put_somewhere(&cluster, GROUP, "c").await;

    let held = cluster.converged(GROUP, 52).await;
    for number in 0..50 {
        assert!(held.contains(&payload(format!("a{number:02}"))));
    }
    println!("failover after a killed process: {failover:?}");
    assert!(
        failover < Duration::from_millis(600),
        "with default timeouts, below the shortest of them: {failover:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leader_is_replaced_by_timeout_and_stops_calling_itself_leading() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let old = cluster.leader(GROUP).await;
    let cut_off = cluster.nodes[&old].group(GROUP);
    put(&cut_off, "before").await.unwrap();

    cluster.network.isolate(NodeId(old));
    let stuck = cut_off.propose(INLINE, payload("stuck"));
    let stuck = tokio::time::timeout(Duration::from_secs(5), stuck).await.expect("it must not hang");
    let refused = put(&cut_off, "refused").await;

    assert!(matches!(stuck, Err(ProposeError::Unknown { .. })), "{stuck:?}");
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    assert!(!cut_off.leadership().borrow().leading);
    assert!(matches!(cut_off.read_barrier().await, Err(Error::NoMajority { .. } | Error::NotLeader { .. })));
    let new = until("another leader", || {
        cluster
            .nodes
            .iter()
            .find(|(_, node)| node.group(GROUP).leadership().borrow().leading)
            .map(|(number, _)| *number)
    })
    .await;
    assert_ne!(new, old);
    put(&cluster.nodes[&new].group(GROUP), "after").await.unwrap();

    cluster.network.heal();
    let held = cluster.converged(GROUP, 2).await;
    assert!(held.contains(&payload("before")) && held.contains(&payload("after")));
    assert!(!held.contains(&payload("stuck")), "the new leader's log wins");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_silence_of_everybody_does_not_depose_the_leader_for_good() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    put(&cluster.nodes[&leader].group(GROUP), "one").await.unwrap();

    for number in 1..=3 {
        cluster.network.isolate(NodeId(number));
    }
    until("the leader to notice", || {
        (!cluster.nodes[&leader].group(GROUP).leadership().borrow().leading).then_some(())
    })
    .await;
    cluster.network.heal();
    let healed = Instant::now();

    put_somewhere(&cluster, GROUP, "two").await;

    assert!(healed.elapsed() < quick().group_heartbeat, "a leader that lost its majority asks for it");
    assert_eq!(cluster.converged(GROUP, 2).await, [payload("one"), payload("two")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_majority_comes_back_leads_when_it_has_applied_what_was_under_way() {
    let config = levee_raft::Config { append_entries: 1, appends_in_flight: 1, ..quick() };
    let mut cluster = Cluster::new(3, config);
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    let group = cluster.nodes[&leader].group(GROUP);
    let before = put(&group, "one").await.unwrap();

    for number in 1..=3 {
        cluster.network.isolate(NodeId(number));
    }
    let under_way: Vec<_> =
        (0..50).map(|number| group.propose(INLINE, payload(number.to_string()))).collect();
    until("the leader to notice", || (!group.leadership().borrow().leading).then_some(())).await;
    for proposal in under_way {
        assert!(matches!(proposal.await, Err(ProposeError::Unknown { .. })));
    }
    // So that the followers do not have all of it in one moment.
    cluster.network.set_delay(Duration::from_millis(5), Duration::from_millis(5));
    let mut leadership = group.leadership();
    let term = leadership.borrow_and_update().raft_term;
    cluster.network.heal();

    let now = *leadership.wait_for(|now| now.leading || now.raft_term > term).await.unwrap();

    assert_eq!(now.raft_term, term, "nobody else stands so soon");
    assert!(group.applied_next() > before + 50, "{} of {}", group.applied_next(), before + 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_purge_floor_gets_a_snapshot() {
    let config =
        levee_raft::Config { keep_entries: 10, keep_lagging_bytes: 1000, purge_batch: 20, ..quick() };
    let mut cluster = Cluster::new(3, config);
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    let behind = (1..=3).find(|number| *number != leader).unwrap();
    put(&cluster.nodes[&leader].group(GROUP), "first").await.unwrap();
    cluster.converged(GROUP, 1).await;

    cluster.network.isolate(NodeId(behind));
    let group = cluster.nodes[&leader].group(GROUP);
    let mut count = 1;
    until("the leader to purge", || {
        for _ in 0..20 {
            drop(group.propose(INLINE, payload(format!("{count:0100}"))));
        }
        count += 20;
        group.status().purged.filter(|purged| *purged > 50)
    })
    .await;
    until("all to be applied", || (cluster.nodes[&leader].payloads(GROUP).len() == count).then_some(()))
        .await;
    cluster.network.heal();

    let held = cluster.converged(GROUP, count).await;
    assert_eq!(held.len(), count);
    assert!(cluster.nodes[&behind].group(GROUP).status().purged.is_some(), "it came by snapshot");
    put_somewhere(&cluster, GROUP, "last").await;
    assert_eq!(cluster.converged(GROUP, count + 1).await.len(), count + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_large_entries_are_purged_too_and_the_machine_hears_of_it_though_nothing_follows() {
    let config = levee_raft::Config { keep_bytes: 10_000, ..quick() };
    let mut cluster = Cluster::new(1, config);
    cluster.found(GROUP).await;
    cluster.leader(GROUP).await;
    let group = cluster.nodes[&1].group(GROUP);

    // A purge goes no further than to a checkpoint, of which there is one now and then.
    for number in 0..200 {
        if group.status().purged.is_some_and(|purged| purged > 2) {
            break;
        }
        put(&group, format!("{number:05000}")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let told = &cluster.nodes[&1].told_purged[&GROUP];
    until("the machine to be told", || {
        let purged = group.status().purged.filter(|purged| *purged > 2)?;
        (told.load(Ordering::SeqCst) >= purged).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_from_one_to_three_and_survives_its_founder() {
    let mut cluster = Cluster::new(3, quick());
    let founder = found_alone(&mut cluster).await;
    for number in 0..30 {
        put(&founder, format!("{number:02}")).await.unwrap();
    }

    for number in [2, 3] {
        cluster.nodes.get_mut(&number).unwrap().open(GROUP, Birth::Joining).await;
        founder.add_learner(NodeId(number)).await.unwrap();
    }
    founder.change_voters(ids([1, 2, 3])).await.unwrap();
    let status = founder.status();
    assert_eq!((status.voters, status.learners), (ids([1, 2, 3]), ids([])));
    assert_eq!(status.replicas.len(), 2);
    put(&founder, "30").await.unwrap();
    cluster.kill(1);
    put_somewhere(&cluster, GROUP, "31").await;

    let expected: Vec<_> = (0..32).map(|number| payload(format!("{number:02}"))).collect();
    assert_eq!(cluster.converged(GROUP, 32).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_replaced_and_the_removed_one_can_be_deleted() {
    let mut cluster = Cluster::new(4, quick());
    for number in 1..=3 {
        cluster.nodes.get_mut(&number).unwrap().open(GROUP, Birth::Founding(ids([1, 2, 3]))).await;
    }
    put_somewhere(&cluster, GROUP, "one").await;
    let leader = cluster.leader(GROUP).await;
    let leaving = (1..=3).find(|number| *number != leader).unwrap();

    cluster.nodes.get_mut(&4).unwrap().open(GROUP, Birth::Joining).await;
    let staying = (1..=4).filter(|number| *number != leaving);
    cluster.nodes[&leader].group(GROUP).change_voters(ids(staying)).await.unwrap();
    cluster.nodes[&leaving].groups.remove(GROUP).await.unwrap();
    cluster.nodes.remove(&leaving);
    put_somewhere(&cluster, GROUP, "two").await;

    assert_eq!(cluster.converged(GROUP, 2).await, [payload("one"), payload("two")]);
}

/// The group on the first node, which is its only voter and leads.
async fn found_alone(cluster: &mut Cluster) -> Group {
    let founder = cluster.nodes.get_mut(&1).unwrap().open(GROUP, Birth::Founding(ids([1]))).await;
    founder.leadership().wait_for(|now| now.leading).await.unwrap();
    founder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_group_opens_late_gets_its_vote_when_its_log_has_begun() {
    let mut cluster = Cluster::new(2, quick());
    let founder = found_alone(&mut cluster).await;
    put(&founder, "one").await.unwrap();
    // A leader before may have added it, too, and not seen it begin.
    let early = tokio::time::timeout(Duration::from_secs(1), founder.add_learner(NodeId(2))).await;
    assert!(early.is_err(), "{early:?}");

    let change = tokio::spawn({
        let founder = founder.clone();
        async move { founder.change_voters(ids([1, 2])).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(founder.status().voters, ids([1]), "an empty log has no vote");
    cluster.nodes.get_mut(&2).unwrap().open(GROUP, Birth::Joining).await;
    change.await.unwrap().unwrap();

    assert_eq!(founder.status().voters, ids([1, 2]));
    put(&founder, "two").await.unwrap();
    assert_eq!(cluster.converged(GROUP, 2).await, [payload("one"), payload("two")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_members_that_stopped_halfway_is_seen_and_finished() {
    let mut cluster = Cluster::new(3, quick());
    let founder = found_alone(&mut cluster).await;
    for number in [2, 3] {
        cluster.nodes.get_mut(&number).unwrap().open(GROUP, Birth::Joining).await;
        founder.add_learner(NodeId(number)).await.unwrap();
    }
    let all = ids([1, 2, 3]);

    cluster.network.isolate(NodeId(1));
    let half = tokio::time::timeout(Duration::from_millis(300), founder.change_voters(all.clone())).await;
    assert!(!matches!(half, Ok(Ok(()))), "{half:?}");
    cluster.network.heal();
    put_somewhere(&cluster, GROUP, "one").await;
    assert_eq!(founder.status().voters, all, "all of them vote already");
    assert!(!founder.consists_of(&all), "and so does the founder alone");
    cluster.leader(GROUP).await;
    founder.set_members(all.clone()).await.unwrap();
    assert!(founder.consists_of(&all));

    cluster.kill(1);
    put_somewhere(&cluster, GROUP, "two").await;
    assert_eq!(cluster.converged(GROUP, 2).await, [payload("one"), payload("two")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_is_not_wanted_any_more_leaves() {
    let mut cluster = Cluster::new(2, quick());
    let founder = found_alone(&mut cluster).await;
    // It never comes.
    let early = tokio::time::timeout(Duration::from_millis(300), founder.add_learner(NodeId(2))).await;
    assert!(early.is_err(), "{early:?}");
    assert!(!founder.consists_of(&ids([1])) && !founder.has_left(NodeId(2)));

    founder.set_members(ids([1])).await.unwrap();

    assert!(founder.consists_of(&ids([1])) && founder.has_left(NodeId(2)));
    put(&founder, "one").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let old = cluster.leader(GROUP).await;
    put(&cluster.nodes[&old].group(GROUP), "one").await.unwrap();
    let new = (1..=3).find(|number| *number != old).unwrap();

    cluster.nodes[&old].group(GROUP).transfer(NodeId(new)).await.unwrap();

    assert_eq!(cluster.leader(GROUP).await, new);
    put(&cluster.nodes[&new].group(GROUP), "two").await.unwrap();
    cluster.nodes[&new].group(GROUP).read_barrier().await.unwrap();
    assert_eq!(cluster.converged(GROUP, 2).await, [payload("one"), payload("two")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_log_is_gone_is_refused_and_does_not_vote() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    put(&cluster.nodes[&leader].group(GROUP), "kept").await.unwrap();
    cluster.converged(GROUP, 1).await;
    let (lost, other) = {
        let mut followers = (1..=3).filter(|number| *number != leader);
        (followers.next().unwrap(), followers.next().unwrap())
    };

    // The whole directory is gone: the node comes back under the same id with an empty store.
    cluster.kill(lost);
    cluster.start(lost, MemoryDisk::new());
    let storage = cluster.nodes[&lost].storage.clone();
    let (machine, _) = ListMachine::load(&storage, GROUP);
    let refused = cluster.nodes[&lost].groups.open(GROUP, Sync::Always, machine, Birth::Existing).await;
    assert!(matches!(refused, Err(Error::Lost(GROUP))), "{refused:?}");
    cluster.nodes.get_mut(&lost).unwrap().open(GROUP, Birth::Joining).await;

    // With the leader gone, the other has one vote of three: the empty member must not help it.
    cluster.kill(leader);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!cluster.nodes[&other].group(GROUP).leadership().borrow().leading);
    assert!(!cluster.nodes[&lost].group(GROUP).leadership().borrow().leading);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_remembers_a_group_without_its_log_does_not_open_it() {
    let mut cluster = Cluster::new(1, quick());
    cluster.found(GROUP).await;
    cluster.leader(GROUP).await;
    put(&cluster.nodes[&1].group(GROUP), "one").await.unwrap();
    let node = &cluster.nodes[&1];
    node.groups.close(GROUP).await;
    node.storage.remove_group(GROUP).unwrap();

    let (machine, _) = ListMachine::load(&node.storage, GROUP);
    let opened = node.groups.open(GROUP, Sync::Always, machine, Birth::Founding(ids([1]))).await;

    assert!(matches!(opened, Err(Error::Lost(GROUP))), "{opened:?}");
    node.groups.remove(GROUP).await.unwrap();
    let (machine, _) = ListMachine::load(&node.storage, GROUP);
    assert!(
        node.groups.open(GROUP, Sync::Always, machine, Birth::Founding(ids([1]))).await.is_ok(),
        "removed on purpose"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_machine_stops_its_group_and_answers_everybody() {
    let mut cluster = Cluster::new(1, quick());
    cluster.found(GROUP).await;
    cluster.leader(GROUP).await;
    let group = cluster.nodes[&1].group(GROUP);
    put(&group, "fine").await.unwrap();

    let proposals = ["poison", "behind it", "and this"].map(|text| group.propose(INLINE, payload(text)));
    for proposal in proposals {
        let outcome = tokio::time::timeout(Duration::from_secs(5), proposal).await.expect("it must not hang");
        assert!(outcome.is_err(), "{outcome:?}");
    }

    until("the group to stop", || group.status().stopped).await;
    until("it to lead no more", || (!group.leadership().borrow().leading).then_some(())).await;
    assert!(matches!(put(&group, "late").await, Err(ProposeError::Stopped)));
    assert!(group.read_barrier().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_group_stops_is_replaced_though_its_node_lives() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let old = cluster.leader(GROUP).await;
    put(&cluster.nodes[&old].group(GROUP), "fine").await.unwrap();

    cluster.nodes[&old].broken[&GROUP].store(true, Ordering::SeqCst);
    let lost = Instant::now();
    assert!(put(&cluster.nodes[&old].group(GROUP), "breaks it").await.is_err());
    put_somewhere(&cluster, GROUP, "goes on").await;

    assert!(lost.elapsed() < quick().group_heartbeat, "told by the node, not by the group's own timers");
    assert_ne!(cluster.leader(GROUP).await, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_starts_again_unnoticed_is_believed_no_longer() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    put(&cluster.nodes[&leader].group(GROUP), "before").await.unwrap();
    // Long enough for everybody to have heard of the first process.
    tokio::time::sleep(quick().heartbeat * 2).await;

    let disk = cluster.kill(leader);
    cluster.start(leader, disk);
    cluster.nodes.get_mut(&leader).unwrap().open(GROUP, Birth::Existing).await;
    let lost = Instant::now();
    put_somewhere(&cluster, GROUP, "after").await;

    assert!(lost.elapsed() < quick().group_heartbeat, "its node says so, or it asks for votes");
    assert_eq!(cluster.converged(GROUP, 2).await, [payload("before"), payload("after")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_crash_at_once_and_lose_nothing_acknowledged() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    let mut acknowledged = Vec::new();
    for number in 0..100 {
        let text = format!("{number:03}");
        put(&cluster.nodes[&leader].group(GROUP), text.clone()).await.unwrap();
        acknowledged.push(payload(text));
    }

    let disks: Vec<_> = (1..=3).map(|number| (number, cluster.kill(number))).collect();
    for (number, disk) in disks {
        cluster.start(number, disk);
        cluster.nodes.get_mut(&number).unwrap().open(GROUP, Birth::Existing).await;
    }
    cluster.leader(GROUP).await;

    assert_eq!(cluster.converged(GROUP, 100).await, acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_groups_elect_and_serve_on_three_nodes() {
    let mut cluster = Cluster::new(3, levee_raft::Config::default());
    let groups: Vec<_> = (100..300).map(GroupId).collect();
    let started = Instant::now();
    for group in &groups {
        for node in cluster.nodes.values_mut() {
            node.open(*group, Birth::Founding(ids([1, 2, 3]))).await;
        }
    }
    println!("200 groups on 3 nodes opened in {:?}", started.elapsed());

    for group in &groups {
        put_somewhere(&cluster, *group, "served").await;
    }
    for group in &groups {
        assert_eq!(cluster.converged(*group, 1).await, [payload("served")]);
    }
    println!("and all of them served after {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_group_opens_again_where_it_was() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    put_somewhere(&cluster, GROUP, "one").await;
    let leader = cluster.leader(GROUP).await;
    let follower = (1..=3).find(|number| *number != leader).unwrap();

    cluster.nodes[&follower].groups.close(GROUP).await;
    assert!(cluster.nodes[&follower].groups.group(GROUP).is_none());
    put(&cluster.nodes[&leader].group(GROUP), "two").await.unwrap();
    cluster.nodes.get_mut(&follower).unwrap().open(GROUP, Birth::Existing).await;

    assert_eq!(cluster.converged(GROUP, 2).await, [payload("one"), payload("two")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_dies_between_any_two_writes_founds_again_or_goes_on() {
    for written in 0..5 {
        let mut cluster = Cluster::new(1, quick());
        let disk = cluster.nodes[&1].disk.clone();
        disk.pause();
        cluster.nodes.get_mut(&1).unwrap().open(GROUP, Birth::Founding(ids([1]))).await;
        for _ in 0..written {
            // Fewer writes than asked for: it was done before.
            for _ in 0..20 {
                if cluster.nodes[&1].storage.step() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }

        let disk = cluster.kill(1);
        cluster.start(1, disk);
        cluster.found(GROUP).await;

        put_somewhere(&cluster, GROUP, "served").await;
        assert_eq!(cluster.converged(GROUP, 1).await, [payload("served")], "after {written} writes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_vote_is_gone_is_refused() {
    let mut cluster = Cluster::new(1, quick());
    cluster.found(GROUP).await;
    put_somewhere(&cluster, GROUP, "one").await;

    let disk = cluster.kill(1);
    // The vote is the first row of its group.
    assert!(disk.lose_row(levee_storage::Table::HardState, 0));
    cluster.start(1, disk);

    for birth in [Birth::Founding(ids([1])), Birth::Promised, Birth::Joining, Birth::Existing] {
        let node = &cluster.nodes[&1];
        let (machine, _) = ListMachine::load(&node.storage, GROUP);
        let opened = node.groups.open(GROUP, Sync::Always, machine, birth).await;
        assert!(matches!(opened, Err(Error::Lost(GROUP))), "{opened:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_before_a_majority_has_it_on_disk() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let leader = cluster.leader(GROUP).await;
    put(&cluster.nodes[&leader].group(GROUP), "before").await.unwrap();
    cluster.converged(GROUP, 1).await;
    let followers: Vec<_> = (1..=3).filter(|number| *number != leader).collect();
    followers.iter().for_each(|number| cluster.nodes[number].disk.pause());

    let mut proposal = cluster.nodes[&leader].group(GROUP).propose(INLINE, payload("held back"));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut proposal).await;
    assert!(early.is_err(), "acknowledged by one disk of three: {early:?}");
    let one = &cluster.nodes[&followers[0]];
    one.disk.resume();
    while one.storage.step() {}

    let outcome = tokio::time::timeout(Duration::from_secs(5), proposal).await.expect("it must not hang");
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_meant_for_one_leadership_never_comes_into_a_later_one() {
    let mut cluster = Cluster::new(3, quick());
    cluster.found(GROUP).await;
    let first = cluster.leader(GROUP).await;
    let group = cluster.nodes[&first].group(GROUP);
    let term = group.leadership().borrow().raft_term;
    group.propose_in(term, INLINE, payload("in time")).await.unwrap();

    let other = (1..=3).find(|number| *number != first).unwrap();
    group.transfer(NodeId(other)).await.unwrap();
    cluster.nodes[&other].group(GROUP).transfer(NodeId(first)).await.unwrap();
    until("the first leader leads again", || group.leadership().borrow().leading.then_some(())).await;
    let late = group.propose_in(term, INLINE, payload("too late")).await;
    put(&group, "after").await.unwrap();

    assert!(matches!(late, Err(ProposeError::NotLeader { .. })), "{late:?}");
    assert_eq!(cluster.converged(GROUP, 2).await, [payload("in time"), payload("after")]);
}

/// A group in memory on three nodes. Node 3 has applied what 1 and 2, which come back from a power cut, have lost.
async fn majority_loses_power(config: levee_raft::Config) -> Cluster {
    let mut cluster = Cluster::volatile(3, config);
    cluster.found(GROUP).await;
    put_somewhere(&cluster, GROUP, "synced").await;
    cluster.converged(GROUP, 1).await;
    // A vote syncs what was written before it.
    for number in 1..=2 {
        cluster.nodes[&number].storage.put_node_row("now", b"synced").unwrap();
    }
    for number in 0..20 {
        put_somewhere(&cluster, GROUP, &format!("lost {number}")).await;
    }
    cluster.converged(GROUP, 21).await;
    // Node 3 hears nothing of what happens next, until the two have a leader.
    cluster.network.isolate(NodeId(3));
    for number in 1..=2 {
        let disk = cluster.kill(number);
        cluster.start(number, disk);
    }
    cluster.network.isolate(NodeId(3));
    for number in 1..=2 {
        cluster.nodes.get_mut(&number).unwrap().open(GROUP, Birth::Existing).await;
        let last = cluster.nodes[&number].group(GROUP).status().last_index;
        assert!(last < Some(20), "{last:?}");
    }
    cluster
}

fn leads(cluster: &Cluster, number: u64) -> bool {
    cluster.nodes[&number].group(GROUP).leadership().borrow().leading
}

/// What the node does with a replica that is overruled.
async fn start_over(cluster: &mut Cluster, number: u64) {
    let node = cluster.nodes.get_mut(&number).unwrap();
    let overruled = tokio::time::timeout(Duration::from_secs(20), node.groups.overruled()).await;
    assert!(overruled.expect("it is overruled").contains(&GROUP));
    assert!(node.group(GROUP).is_overruled());
    node.groups.start_over(GROUP).await.unwrap();
    node.open(GROUP, Birth::Founding(ids([1, 2, 3]))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_in_memory_that_has_what_the_majority_lost_starts_over_and_takes_part() {
    let mut cluster = majority_loses_power(quick()).await;
    let leader = until("one of the two leads", || (1..=2).find(|number| leads(&cluster, *number))).await;
    let group = cluster.nodes[&leader].group(GROUP);
    put(&group, "while it was away").await.unwrap();

    cluster.network.heal();
    start_over(&mut cluster, 3).await;

    put(&group, "after").await.unwrap();
    let expected = ["synced", "while it was away", "after"].map(payload);
    assert_eq!(cluster.converged(GROUP, 3).await, expected);
    // With the leader gone, it and the other are the majority.
    cluster.kill(leader);
    put_somewhere(&cluster, GROUP, "without the leader").await;
    assert_eq!(cluster.converged(GROUP, 4).await[..3], expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_in_memory_that_purged_what_the_majority_lost_starts_over() {
    let config = levee_raft::Config { keep_entries: 1, purge_batch: 1, ..quick() };
    let mut cluster = majority_loses_power(config).await;
    let leader = until("one of the two leads", || (1..=2).find(|number| leads(&cluster, *number))).await;
    until("the log is cut beyond what they have", || {
        cluster.nodes[&3].group(GROUP).status().purged.filter(|purged| *purged > 10)
    })
    .await;

    cluster.network.heal();
    start_over(&mut cluster, 3).await;

    put(&cluster.nodes[&leader].group(GROUP), "after").await.unwrap();
    assert_eq!(cluster.converged(GROUP, 2).await, ["synced", "after"].map(payload));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_started_over_does_not_vote_for_a_log_that_ends_before_that() {
    let mut cluster = majority_loses_power(quick()).await;
    let leader = until("one of the two leads", || (1..=2).find(|number| leads(&cluster, *number))).await;
    let other = 3 - leader;
    put(&cluster.nodes[&leader].group(GROUP), "kept").await.unwrap();
    cluster.nodes[&leader].storage.put_node_row("now", b"synced").unwrap();
    cluster.network.heal();
    until("node 3 is overruled", || cluster.nodes[&3].group(GROUP).is_overruled().then_some(())).await;
    cluster.network.isolate(NodeId(3));
    start_over(&mut cluster, 3).await;

    // Only the leader still has it, and it is gone. The other two are a majority.
    let disk = cluster.kill(other);
    cluster.start(other, disk);
    cluster.nodes.get_mut(&other).unwrap().open(GROUP, Birth::Existing).await;
    let disk = cluster.kill(leader);
    cluster.network.heal();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!leads(&cluster, other) && !leads(&cluster, 3), "they would lose what is kept");

    cluster.start(leader, disk);
    cluster.nodes.get_mut(&leader).unwrap().open(GROUP, Birth::Existing).await;
    put_somewhere(&cluster, GROUP, "after").await;
    assert_eq!(cluster.converged(GROUP, 3).await, ["synced", "kept", "after"].map(payload));
}
