//! One run: found the group, work in trouble, heal, come to rest, and look at everything; then once more after all
//! nodes lost power.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::rows::StateRow;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::time::{Nanos, Timestamp};

use crate::batches;
use crate::clients;
use crate::consumers;
use crate::copies;
use crate::counters;
use crate::fast;
use crate::faults;
use crate::keeper;
use crate::oracle::totals;
use crate::plan::Plan;
use crate::restores;
use crate::schedules;
use crate::streams::{Stream, Which};
use crate::subscribers;
use crate::world::{Loss, Process, World};

/// How long the cluster may take to come to rest when nothing is wrong any more.
const REST_WITHIN: Duration = Duration::from_secs(60);
/// How long consumers may take to finish, while something moves.
const DRAINED_WITHIN: Duration = Duration::from_secs(1200);

/// How old the streams and the consumers are when a run begins. Leaders believe less of younger consumers' acks.
const AGE: Nanos = Nanos::from_secs(120);

/// The trace, and what happened in a few words or the first promise that was broken.
pub(crate) fn run(seed: u64, plan: Plan) -> (String, Result<String, String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O starts");
    let traced = runtime.block_on(async {
        let world = World::new(seed, plan);
        let outcome = stages(&world).await;
        let outcome = world.oracle.violation().map_or(outcome, Err);
        match &outcome {
            Ok(summary) => world.trace.note(format_args!("kept: {summary}")),
            Err(why) => world.trace.note(format_args!("broken: {why}")),
        }
        (world.trace.text(), outcome)
    });
    // What is left of the processes is nobody's concern any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    traced
}

async fn stages(world: &Arc<World>) -> Result<String, String> {
    world.trace.note(format_args!("{:?}", world.plan));
    found(world).await?;

    let mut working = tokio::task::JoinSet::new();
    for number in 0..world.plan.publishers {
        working.spawn(clients::publisher(Arc::clone(world), number));
    }
    if world.plan.restores {
        working.spawn(restores::restorer(Arc::clone(world)));
    }
    working.spawn(clients::operator(Arc::clone(world)));
    if world.plan.begins_again {
        working.spawn(keeper::keeper(Arc::clone(world)));
    }
    working.spawn(clients::reader(Arc::clone(world)));
    working.spawn(clients::reader(Arc::clone(world)));
    for which in &world.plan.further {
        for number in 0..2 {
            match which {
                Which::Counters => working.spawn(counters::adder(Arc::clone(world), number)),
                Which::Batches => working.spawn(batches::batcher(Arc::clone(world), number)),
                Which::Schedules => working.spawn(schedules::planner(Arc::clone(world), number)),
                Which::Origin | Which::Dead | Which::Mirror | Which::Sourced | Which::Restored => continue,
            };
        }
        match which {
            Which::Counters => drop(working.spawn(counters::summer(Arc::clone(world)))),
            Which::Batches => {
                working.spawn(batches::reader(Arc::clone(world)));
                for number in 0..3 {
                    working.spawn(fast::publisher(Arc::clone(world), number));
                }
                working.spawn(fast::reader(Arc::clone(world)));
            }
            _ => {}
        }
    }
    let mut subscribing = tokio::task::JoinSet::new();
    for config in &world.plan.consumers {
        let clients = if config.is_push() { 1 } else { world.plan.subscribers };
        for number in 0..clients {
            subscribing.spawn(subscribers::subscriber(Arc::clone(world), config.clone(), number));
        }
    }
    faults::trouble(Arc::clone(world)).await;

    world.heal().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.close();
    let finish = async {
        while let Some(ended) = working.join_next().await {
            ended.map_err(|panicked| format!("a client panicked: {panicked}"))?;
        }
        Ok::<_, String>(())
    };
    match tokio::time::timeout(REST_WITHIN, finish).await {
        Ok(finished) => finished?,
        Err(_) => {
            return Err(format!(
                "clients still wait {REST_WITHIN:?} after everything healed: {}",
                standing(world)
            ));
        }
    }
    resume(world).await?;
    drain(world).await?;
    catch_up(world).await?;
    fire(world).await?;
    world.end();
    while subscribing.join_next().await.is_some() {}
    rest(world).await?;
    inspect(world)?;
    world.oracle.consumers_are_done()?;

    for host in &world.hosts {
        world.crash(host, Loss::AllBut(0)).await;
    }
    for host in &world.hosts {
        world.start(host).await;
    }
    rest(world).await?;
    inspect(world)?;
    for host in &world.hosts {
        world.crash(host, Loss::AllBut(0)).await;
    }
    Ok(world.oracle.summary(world.trace.elapsed()))
}

/// The streams and the consumers exist, and every node has them.
async fn found(world: &Arc<World>) -> Result<(), String> {
    for host in &world.hosts {
        world.start(host).await;
    }
    let created = world.created();
    let work = async {
        for which in world.plan.streams() {
            let config = world.plan.config(which);
            clients::insist(world, which, |now| StreamCommand::Configure {
                now: now.plus(Nanos(-AGE.0)),
                created,
                config: Box::new(config.clone()),
            })
            .await;
        }
        for config in world.plan.all_consumers() {
            let long_ago = |now: Timestamp| now.plus(Nanos(-AGE.0));
            clients::insist(world, Which::Origin, |now| consumers::creation(config, long_ago(now))).await;
        }
    };
    if tokio::time::timeout(REST_WITHIN, work).await.is_err() {
        return Err(format!("the group did not begin: {}", standing(world)));
    }
    rest(world).await
}

/// Every consumer is there from here on, and none is paused.
async fn resume(world: &Arc<World>) -> Result<(), String> {
    let work = async {
        for config in &world.plan.consumers {
            // What became of the last deletion is not known to everybody who asked for one.
            clients::insist(world, Which::Origin, |now| consumers::creation(config, now)).await;
            clients::insist(world, Which::Origin, |now| consumers::pause(config, None, now)).await;
        }
    };
    let resumed = tokio::time::timeout(REST_WITHIN, work).await;
    resumed
        .map_err(|_| format!("consumers could not be resumed after everything healed: {}", standing(world)))
}

/// Waits until consumers have delivered everything and all of it is settled. It may take long; it must not stop.
async fn drain(world: &Arc<World>) -> Result<(), String> {
    let began = tokio::time::Instant::now();
    let mut moved = (began, 0);
    loop {
        let done = world.leading(Which::Origin).and_then(|(_, process)| {
            let leader = process.stream(Which::Origin).replica.leader()?;
            let left =
                |config| leader.driver(&consumers::name(config)).is_none_or(|driver| !driver.is_done());
            Some(world.plan.all_consumers().filter(|config| left(config)).map(|it| it.name.clone()).collect())
        });
        let left: Vec<String> = match done {
            Some(left) if Vec::is_empty(&left) => return Ok(()),
            Some(left) => left,
            None => Vec::new(),
        };
        if let Some(violation) = world.oracle.violation() {
            return Err(violation);
        }
        let last = world.oracle.last_index();
        if began.elapsed() > DRAINED_WITHIN {
            return Err(format!(
                "consumers {left:?} come to no end after everything healed: {}",
                standing(world)
            ));
        } else if last > moved.1 {
            moved = (tokio::time::Instant::now(), last);
        } else if moved.0.elapsed() > REST_WITHIN {
            return Err(format!("consumers {left:?} stall after everything healed: {}", standing(world)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until streams that copy others have come to their ends.
async fn catch_up(world: &Arc<World>) -> Result<(), String> {
    for which in world.plan.streams().into_iter().filter(|which| which.is_copy()) {
        let at_the_end = || copies::has_caught_up(world, which).then_some(());
        if world.until(REST_WITHIN, at_the_end).await.is_none() {
            let stalls = || format!("{} lags behind its origins: {}", which.name(), standing(world));
            return Err(world.oracle.violation().unwrap_or_else(stalls));
        }
    }
    Ok(())
}

/// Waits until nothing is scheduled any more.
async fn fire(world: &Arc<World>) -> Result<(), String> {
    for oracle in world.plan.further.iter().map(|which| &world.oracles[which]) {
        let is_done = || oracle.model().nothing_is_scheduled().then_some(());
        if world.until(REST_WITHIN, is_done).await.is_none() {
            let stalls = || format!("nothing comes of what is scheduled: {}", standing(world));
            return Err(world.oracle.violation().unwrap_or_else(stalls));
        }
    }
    Ok(())
}

/// Waits until one node leads each stream, all agree, and all have applied everything.
async fn rest(world: &Arc<World>) -> Result<(), String> {
    for which in world.plan.streams() {
        rest_of(world, which).await?;
    }
    Ok(())
}

async fn rest_of(world: &Arc<World>, which: Which) -> Result<(), String> {
    // What is committed is known everywhere only when something follows it.
    let nudge = clients::insist(world, which, |now| StreamCommand::Tick { now });
    if tokio::time::timeout(REST_WITHIN, nudge).await.is_err() {
        return Err(format!(
            "nothing is committed {REST_WITHIN:?} after everything healed: {}",
            standing(world)
        ));
    }
    let oracle = &world.oracles[&which];
    let at_rest = || {
        let running = world.processes();
        let leading: Vec<_> = running.iter().filter(|(_, it)| it.leads(which)).collect();
        let [(leader, process)] = leading.as_slice() else { return None };
        let next = process.stream(which).group.applied_next();
        let (_, acknowledged) = oracle.acknowledged();
        let agree = |other: &Process| {
            let group = &other.stream(which).group;
            group.applied_next() == next && group.leadership().borrow().leader == Some(leader.id)
        };
        let enough = next > acknowledged && next > oracle.last_index();
        (enough && running.len() == world.hosts.len() && running.iter().all(|(_, it)| agree(it)))
            .then_some(())
    };
    match world.until(REST_WITHIN, at_rest).await {
        Some(()) => Ok(()),
        None => Err(world
            .oracle
            .violation()
            .unwrap_or_else(|| format!("{} finds no rest: {}", which.name(), standing(world)))),
    }
}

/// Every replica has what the model has, and they are equal byte for byte.
fn inspect(world: &World) -> Result<(), String> {
    for which in world.plan.streams() {
        inspect_stream(world, which).map_err(|problem| format!("stream {}: {problem}", which.name()))?;
    }
    Ok(())
}

fn inspect_stream(world: &World, which: Which) -> Result<(), String> {
    let model = world.oracles[&which].model();
    let mut rows: Option<Vec<StateRow>> = None;
    for (host, process) in world.processes() {
        let of = host.id;
        let stream = process.stream(which);
        let (state, own) = stream.replica.read(|machine, _| (machine.all_rows(), totals(machine)));
        if !which.is_copy() && own != model.totals() {
            return Err(format!("{of} has {own:?}, and must have {:?}", model.totals()));
        }
        match &rows {
            None => rows = Some(state),
            Some(others) if *others != state => return Err(format!("{of} holds another state than node 1")),
            Some(_) => {}
        }
        let inspected = match which {
            Which::Origin | Which::Dead | Which::Counters | Which::Batches | Which::Schedules => {
                inspect_messages(stream, model.live())
            }
            Which::Mirror | Which::Sourced => copies::inspect(world, stream),
            Which::Restored => restores::inspect(world, stream),
        };
        let inspected = inspected.and_then(|()| match which {
            Which::Counters => counters::inspect(world, stream),
            Which::Batches => batches::inspect(stream).and_then(|()| fast::inspect(world, stream)),
            _ => Ok(()),
        });
        inspected.map_err(|problem| format!("{of}: {problem}"))?;
    }
    Ok(())
}

fn inspect_messages(stream: &Stream, live: &BTreeMap<u64, crate::model::Message>) -> Result<(), String> {
    for (seq, message) in live {
        let record = match stream.replica.messages.record(Seq(*seq)) {
            Ok(Some(record)) => record,
            Ok(None) => {
                return Err(format!("message {seq} is not there: {}", clients::shown(&message.payload)));
            }
            Err(error) => return Err(format!("message {seq} does not read: {error}")),
        };
        if (&record.subject, &record.header, &record.payload)
            != (&message.subject, &message.header, &message.payload)
            || record.timestamp != message.at
        {
            return Err(format!("message {seq} reads as {record:?}, and must be {message:?}"));
        }
    }
    let mut scanned = Vec::new();
    let is_live = |seq| stream.replica.read(|machine, _| machine.is_live(seq));
    stream
        .replica
        .messages
        .scan(Seq(1), &mut |seq, _| {
            if is_live(seq) {
                scanned.push(seq.0);
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| format!("scanning failed: {error}"))?;
    if !scanned.iter().eq(live.keys()) {
        return Err(format!("a scan visits {} live messages of {}", scanned.len(), live.len()));
    }
    Ok(())
}

/// Where every node is, for a message to a person.
fn standing(world: &World) -> String {
    let one = |host: &Arc<crate::world::Host>| {
        let Some(process) = host.process() else { return format!("{} does not run", host.id) };
        let streams: Vec<String> = process.streams().map(|stream| standing_of(&process, stream)).collect();
        format!("{}: {}", host.id, streams.join(", "))
    };
    world.hosts.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn standing_of(process: &Process, stream: &Stream) -> String {
    let status = stream.group.status();
    format!(
        "{} {:?} term {} last {:?} committed {:?} applied {:?} purged {:?} stopped {:?} store {:?}",
        stream.which.name(),
        stream.group.leadership().borrow(),
        status.raft_term,
        status.last_index,
        status.committed,
        status.applied,
        status.purged,
        status.stopped,
        process.storage.failed()
    )
}
