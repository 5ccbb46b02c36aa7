//! Reads without a consumer.

use anyhow::Result;
use async_nats::jetstream::stream::Config;
use levee_tests::wait::{PATIENCE, wait_until};

use crate::ground::{Ground, text};

pub(crate) async fn messages_are_read_by_sequence_and_by_subject(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "READ".into(), ..Default::default() }).await?;
    for (last, body) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4")] {
        home.publish(last, body).await?;
    }

    let by_seq = home.stream.get_raw_message(3).await?;
    assert_eq!((by_seq.subject.to_string(), text(&by_seq.payload)), (home.subject("a"), "3".into()));
    let last = home.stream.get_last_raw_message_by_subject(&home.subject("*")).await?;
    assert_eq!((last.sequence, text(&last.payload)), (4, "4".into()));
    let next = home.stream.get_first_raw_message_by_subject(home.subject("b"), 3).await?;
    assert_eq!((next.sequence, text(&next.payload)), (4, "4".into()));
    let first = home.stream.get_next_raw_message_by_subject(home.subject("b")).await?;
    assert_eq!(first.sequence, 2);
    assert!(home.stream.get_raw_message(5).await.is_err());
    assert!(home.stream.get_last_raw_message_by_subject(&home.subject("none")).await.is_err());
    Ok(())
}

pub(crate) async fn direct_get_gives_the_same_as_the_leader(ground: &Ground) -> Result<()> {
    let config = Config { name: "DIRECT".into(), allow_direct: true, ..Default::default() };
    let home = ground.stream(config).await?;
    home.publish_many("a", 3).await?;
    home.publish("b", "4").await?;

    // Any replica answers, and one may still be about to apply the last message.
    wait_until("the last message can be read from any replica", PATIENCE, async || {
        let message = home.stream.direct_get(4).await?;
        Ok((text(&message.payload) == "4").then_some(()))
    })
    .await?;

    for seq in 1..=3 {
        let leader = home.stream.get_raw_message(seq).await?;
        let direct = home.stream.direct_get(seq).await?;
        assert_eq!(
            (&direct.subject, direct.sequence, &direct.payload, direct.time),
            (&leader.subject, leader.sequence, &leader.payload, leader.time)
        );
    }
    assert_eq!(home.stream.direct_get_last_for_subject(home.subject("a")).await?.sequence, 3);
    assert_eq!(home.stream.direct_get_next_for_subject(home.subject("a"), Some(2)).await?.sequence, 2);
    assert_eq!(home.stream.direct_get_first_for_subject(home.subject("b")).await?.sequence, 4);
    assert!(home.stream.direct_get(9).await.is_err());
    Ok(())
}
