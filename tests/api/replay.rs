//! Where consumers begin.

use anyhow::Result;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Config;

use crate::ground::{Ground, Home, bodies, take};

/// What a consumer that begins there gives of `count` messages.
async fn from(home: &Home, deliver_policy: DeliverPolicy, count: usize) -> Result<Vec<String>> {
    let config = pull::Config {
        deliver_policy,
        ack_policy: AckPolicy::None,
        filter_subject: home.subject(">"),
        ..Default::default()
    };
    let consumer = home.pull(config).await?;
    Ok(bodies(&take(&consumer, count).await?))
}

pub(crate) async fn replay_begins_at_a_sequence(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "FROMSEQ".into(), ..Default::default() }).await?;
    home.publish_many("a", 10).await?;
    home.stream.purge().sequence(3).await?;

    let middle = from(&home, DeliverPolicy::ByStartSequence { start_sequence: 8 }, 3).await?;
    let before = from(&home, DeliverPolicy::ByStartSequence { start_sequence: 1 }, 2).await?;

    assert_eq!(middle, ["8", "9", "10"]);
    assert_eq!(before, ["3", "4"], "what is gone is not waited for");
    Ok(())
}

pub(crate) async fn replay_begins_at_a_time(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "FROMTIME".into(), ..Default::default() }).await?;
    home.publish_many("a", 6).await?;

    let fourth = home.stream.get_raw_message(4).await?.time;
    let exact = from(&home, DeliverPolicy::ByStartTime { start_time: fourth }, 3).await?;

    assert_eq!(exact, ["4", "5", "6"]);
    let early = home.stream.get_info().await?.created;
    let all = from(&home, DeliverPolicy::ByStartTime { start_time: early }, 6).await?;
    assert_eq!(all, ["1", "2", "3", "4", "5", "6"]);
    Ok(())
}

pub(crate) async fn replay_begins_with_the_last_the_new_or_the_last_of_each_subject(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "FROMLAST".into(), ..Default::default() }).await?;
    for (last, body) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", "5")] {
        home.publish(last, body).await?;
    }

    assert_eq!(from(&home, DeliverPolicy::Last, 1).await?, ["5"]);
    assert_eq!(from(&home, DeliverPolicy::LastPerSubject, 3).await?, ["3", "4", "5"]);

    let config = pull::Config { deliver_policy: DeliverPolicy::New, ..Default::default() };
    let new = home.pull(config).await?;
    home.publish("a", "6").await?;
    assert_eq!(bodies(&take(&new, 1).await?), ["6"]);
    Ok(())
}
