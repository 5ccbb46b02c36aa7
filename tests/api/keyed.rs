//! Many workers, and of the messages of one key one in flight at a time. Only Levee claims it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::Config;
use levee_tests::skip;
use tokio::sync::Mutex;

use crate::ground::{Ground, Home, bodies, sequence, settle_confirmed, take, take_within, text};

async fn home(ground: &Ground, name: &str) -> Result<Option<Home>> {
    if !ground.cluster.program().is_levee() {
        skip::not_claimed(name, "keys are Levee's own");
        return Ok(None);
    }
    Ok(Some(ground.stream(Config { name: name.into(), ..Default::default() }).await?))
}

async fn keyed(home: &Home, key: &str) -> Result<PullConsumer> {
    let metadata = [("levee.key".to_owned(), key.to_owned())].into();
    home.pull(pull::Config { durable_name: Some("worker".into()), metadata, ..Default::default() }).await
}

/// What workers have in hand, and what they finished, by key.
#[derive(Default)]
struct Board {
    in_hand: BTreeMap<String, u64>,
    done: BTreeMap<String, Vec<String>>,
    finished: usize,
}

/// Takes messages until `total` are finished by all workers. Every fourth is refused the first time.
async fn work(consumer: PullConsumer, board: Arc<Mutex<Board>>, total: usize) -> Result<()> {
    while board.lock().await.finished < total {
        let messages = take_within(&consumer, 3, Duration::from_millis(400)).await?;
        for message in &messages {
            let (key, seq) = (message.subject.to_string(), sequence(message)?);
            let before = board.lock().await.in_hand.insert(key.clone(), seq);
            ensure!(before.is_none(), "{key}: {seq} came while {before:?} was in hand");
        }
        for message in messages {
            let (key, seq) = (message.subject.to_string(), sequence(&message)?);
            let attempt = crate::ground::attempt(&message)?;
            tokio::time::sleep(Duration::from_millis(seq % 7)).await;
            let refused = seq % 4 == 0 && attempt == 1;
            let mut board = board.lock().await;
            board.in_hand.remove(&key);
            if refused {
                drop(board);
                settle_confirmed(&message, AckKind::Nak(None)).await?;
            } else {
                board.done.entry(key).or_default().push(text(&message.payload));
                board.finished += 1;
                drop(board);
                settle_confirmed(&message, AckKind::Ack).await?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn workers_share_a_consumer_and_each_key_stays_in_order(ground: &Ground) -> Result<()> {
    let Some(home) = home(ground, "KEYED").await? else { return Ok(()) };
    for number in 1..=20 {
        for key in ["a", "b", "c"] {
            home.publish(key, &number.to_string()).await?;
        }
    }
    let consumer = keyed(&home, "token:2").await?;
    let board = Arc::new(Mutex::new(Board::default()));

    let workers = (0..4).map(|_| tokio::spawn(work(consumer.clone(), Arc::clone(&board), 60)));
    for worker in futures::future::join_all(workers).await {
        worker??;
    }

    let expected: Vec<String> = (1..=20).map(|number| number.to_string()).collect();
    let board = board.lock().await;
    assert_eq!(board.done.len(), 3);
    for (key, done) in &board.done {
        assert_eq!(done, &expected, "{key}");
    }
    Ok(())
}

pub(crate) async fn a_message_that_waits_for_its_key_holds_no_other_up(ground: &Ground) -> Result<()> {
    let Some(home) = home(ground, "HEADED").await? else { return Ok(()) };
    for (key, body) in [("1", "a"), ("1", "b"), ("", "c"), ("2", "d"), ("", "e")] {
        let mut headers = HeaderMap::new();
        headers.insert("Other", "x");
        if !key.is_empty() {
            headers.insert("Order", key);
        }
        home.js.publish_with_headers(home.subject("s"), headers, body.into()).await?.await?;
    }
    let consumer = keyed(&home, "header:Order").await?;

    let first = take_within(&consumer, 5, Duration::from_secs(1)).await?;
    assert_eq!(bodies(&first), ["a", "c", "d", "e"]);
    assert_eq!(home.stream.consumer_info("worker").await?.num_pending, 1);
    settle_confirmed(first.first().context("a message")?, AckKind::Ack).await?;

    assert_eq!(bodies(&take(&consumer, 1).await?), ["b"]);
    Ok(())
}
