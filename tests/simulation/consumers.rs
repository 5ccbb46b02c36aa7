//! The consumers of a run: one of each ack policy, and those with options of our own, with bounds from the seed.

use std::collections::BTreeMap;

use levee_protocol::api::{AckPolicy, ConsumerConfig, ConsumerCreateAction};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::ConsumerName;
use levee_protocol::time::{Nanos, Timestamp};

use crate::chance::Chance;
use crate::letters;

/// Draws them.
pub(crate) fn draw(chance: &mut Chance) -> Vec<ConsumerConfig> {
    let kinds = [explicit, all, none, pushed, dying, keyed, freeing, everything];
    // A few at a time, so that each gets its share of a run.
    let first = chance.below(kinds.len() as u64);
    let step = chance.pick(&[1, 3, 5]);
    (0..chance.between(2, 4))
        .map(|at| {
            let at = usize::try_from((first + at * step) % kinds.len() as u64).unwrap_or(0);
            kinds[at](chance)
        })
        .collect()
}

/// The command that creates one.
pub(crate) fn creation(config: &ConsumerConfig, now: Timestamp) -> StreamCommand {
    StreamCommand::CreateConsumer {
        now,
        name: name(config),
        config: Box::new(config.clone()),
        action: ConsumerCreateAction::Create,
        default_max: 0,
    }
}

/// The command that gives one other bounds.
pub(crate) fn update(
    config: &ConsumerConfig,
    (wait_ms, places): (i64, i64),
    now: Timestamp,
) -> StreamCommand {
    let mut config = config.clone();
    if config.ack_policy != AckPolicy::None {
        config.max_ack_pending = places;
        if config.backoff.is_empty() {
            config.ack_wait = Nanos::from_millis(wait_ms);
        }
    }
    StreamCommand::CreateConsumer {
        now,
        name: name(&config),
        config: Box::new(config),
        action: ConsumerCreateAction::Update,
        default_max: 0,
    }
}

/// The command that pauses one, or has it go on.
pub(crate) fn pause(config: &ConsumerConfig, span: Option<Nanos>, now: Timestamp) -> StreamCommand {
    let until = span.map_or(Timestamp::ZERO, |span| now.plus(span));
    StreamCommand::PauseConsumer { now, name: name(config), until }
}

/// Its name.
pub(crate) fn name(config: &ConsumerConfig) -> ConsumerName {
    ConsumerName::parse(&config.durable_name).expect("the names of a run are valid")
}

fn base(name: &str, chance: &mut Chance) -> ConsumerConfig {
    let mut config = ConsumerConfig {
        durable_name: name.to_owned(),
        name: name.to_owned(),
        ack_wait: Nanos::from_millis(chance.pick(&[300, 1000, 4000])),
        max_deliver: chance.pick(&[-1, -1, 1, 2, 5]),
        max_ack_pending: chance.pick(&[3, 10, 100, 1000]),
        ..ConsumerConfig::default()
    };
    if config.max_deliver > 2 && chance.percent(40) {
        config.backoff = [100, 400, 1500].map(Nanos::from_millis).to_vec();
        config.ack_wait = Nanos::ZERO;
    }
    if chance.percent(60) {
        config.filter_subjects = ["sim.1", "sim.2", "sim.3"].map(str::to_owned).to_vec();
    }
    config
}

fn with(mut config: ConsumerConfig, options: &[(&str, &str)]) -> ConsumerConfig {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    config.metadata = options.collect::<BTreeMap<_, _>>();
    config
}

fn explicit(chance: &mut Chance) -> ConsumerConfig {
    ConsumerConfig { ack_policy: AckPolicy::Explicit, ..base("explicit", chance) }
}

fn all(chance: &mut Chance) -> ConsumerConfig {
    ConsumerConfig { ack_policy: AckPolicy::All, ..base("all", chance) }
}

fn none(chance: &mut Chance) -> ConsumerConfig {
    let filter_subjects = base("none", chance).filter_subjects;
    ConsumerConfig {
        durable_name: "none".to_owned(),
        name: "none".to_owned(),
        ack_policy: AckPolicy::None,
        filter_subjects,
        ..ConsumerConfig::default()
    }
}

fn pushed(chance: &mut Chance) -> ConsumerConfig {
    let flow_control = chance.percent(50);
    ConsumerConfig {
        ack_policy: chance.pick(&[AckPolicy::Explicit, AckPolicy::All]),
        deliver_subject: "deliver.pushed".to_owned(),
        flow_control,
        idle_heartbeat: if flow_control { Nanos::from_millis(500) } else { Nanos::ZERO },
        ..base("pushed", chance)
    }
}

fn dying(chance: &mut Chance) -> ConsumerConfig {
    let config = ConsumerConfig {
        ack_policy: AckPolicy::Explicit,
        max_deliver: chance.pick(&[1, 2, 3]),
        backoff: Vec::new(),
        ack_wait: Nanos::from_millis(chance.pick(&[300, 1000])),
        ..base("dying", chance)
    };
    with(config, &[("levee.dead_letter", letters::SUBJECT)])
}

fn keyed(chance: &mut Chance) -> ConsumerConfig {
    let config = ConsumerConfig { ack_policy: AckPolicy::Explicit, ..base("keyed", chance) };
    with(config, &[("levee.key", "token:2")])
}

fn freeing(chance: &mut Chance) -> ConsumerConfig {
    let config = ConsumerConfig {
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: chance.pick(&[2, 5, 20]),
        ..base("freeing", chance)
    };
    with(config, &[("levee.nak_delay_frees_slot", "true")])
}

fn everything(chance: &mut Chance) -> ConsumerConfig {
    let config = ConsumerConfig {
        ack_policy: AckPolicy::Explicit,
        max_deliver: chance.pick(&[2, 3]),
        backoff: Vec::new(),
        ack_wait: Nanos::from_millis(chance.pick(&[300, 1000])),
        max_ack_pending: chance.pick(&[3, 10, 100]),
        ..base("everything", chance)
    };
    let options = [
        ("levee.dead_letter", letters::SUBJECT),
        ("levee.key", "token:2"),
        ("levee.nak_delay_frees_slot", "true"),
    ];
    with(config, &options)
}
