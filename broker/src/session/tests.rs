//! Core NATS over real sockets, in the words of the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use levee_protocol::ids::AccountName;
use parking_lot::Mutex;

use crate::router::{ClientInfo, Inbound, InterestWatcher, MessageRef, Resolved, Services, Sink};
use crate::session::testing::{Server, wait_until};
use crate::session::{AuthConfig, ConnectionLimits, Secret, SessionLimits, User};

/// What a usual client sends, and all it gets.
async fn check(sent: &str, expected: &str) {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(sent).await;
    client.expect(expected).await;
    client.expect_nothing().await;
}

/// The same, and the connection ends.
async fn check_closes(sent: &str, expected: &str) {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(sent).await;
    client.expect(expected).await;
    client.expect_end().await;
    wait_until("the session is gone", || server.sessions.connections().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_connect_a_client_is_verbose_and_served_if_nobody_has_to_authenticate() {
    let server = Server::start();
    let mut client = server.dial().await;

    client.send("PUB foo 2\r\nhi\r\nSUB bar 1\r\nUNSUB 1\r\nUNSUB 99\r\nPING\r\n").await;

    client.expect("+OK\r\n+OK\r\n+OK\r\n+OK\r\nPONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_pong_after_connect_is_followed_by_an_info_about_the_connection() {
    let server = Server::start();
    let mut client = server.dial().await;

    client.send("CONNECT {\"protocol\":1,\"name\":\"app\",\"lang\":\"rust\"}\r\nPING\r\nPING\r\n").await;

    client.expect("+OK\r\nPONG\r\n").await;
    let info = client.line().await;
    let info: serde_json::Value = serde_json::from_str(info.strip_prefix("INFO ").unwrap()).unwrap();
    assert_eq!(info["connect_info"], true);
    assert_eq!(info["remote_account"], "$G");
    assert_eq!(info["client_ip"], "127.0.0.1");
    assert_eq!(info["client_id"], 1);
    client.expect("PONG\r\n").await;
    let views = server.sessions.connections();
    assert_eq!((views[0].client.name.as_str(), views[0].client.lang.as_str()), ("app", "rust"));
    assert!(views[0].round_trip.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_that_close_and_errors_that_do_not() {
    check_closes("FOO\r\n", "-ERR 'Unknown Protocol Operation'\r\n").await;
    check_closes("PUB foo 9999999\r\n", "-ERR 'Maximum Payload Violation'\r\n").await;
    check_closes("PUB foo\r\nPING\r\n", "").await;
    check_closes("PUB foo 2\r\nabcd\r\nPING\r\n", "-ERR 'Unknown Protocol Operation'\r\n").await;
    check_closes(&format!("SUB {} 1\r\n", "x".repeat(5000)), "-ERR 'maximum control line exceeded'\r\n")
        .await;
    check_closes("CONNECT {nope\r\nPING\r\n", "").await;
    check_closes("-ERR 'bye'\r\nPING\r\n", "").await;
    check_closes("CONNECT {\"protocol\":7}\r\n", "-ERR 'invalid client protocol'\r\n").await;
    check_closes("CONNECT {\"no_responders\":true}\r\n", "-ERR 'no responders requires headers support'\r\n")
        .await;
    check_closes("MSG a 1 0\r\n\r\n", "-ERR 'Unknown Protocol Operation'\r\n").await;

    check("SUB foo..bar 1\r\n", "-ERR 'Invalid Subject'\r\n").await;
    check("SUB foo.>.x 2\r\n", "-ERR 'Invalid Subject'\r\n").await;
    check("INFO {}\r\n+OK\r\n", "").await;
    check(
        "PUB foo _R_.abc.def 1\r\nx\r\n",
        "-ERR 'Permissions Violation for Publish with Reply of \"_R_.abc.def\"'\r\n",
    )
    .await;
    check("PUB $NRG.x 1\r\nx\r\n", "-ERR 'Permissions Violation for Publish to \"$NRG.x\"'\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pedantic_client_is_told_of_invalid_subjects_and_served_nevertheless() {
    let server = Server::start();
    let mut client = server.dial().await;
    client.send("CONNECT {\"verbose\":false}\r\nSUB foo.> 1\r\nPUB foo.* 2\r\nab\r\nPING\r\n").await;

    client.expect("-ERR 'Invalid Publish Subject'\r\nMSG foo.* 1 2\r\nab\r\nPONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_reach_every_subscription_that_matches_literally() {
    check("SUB foo.> 1\r\nPUB foo.* 2\r\nab\r\n", "MSG foo.* 1 2\r\nab\r\n").await;
    check("SUB foo 1\r\nSUB foo 2\r\nPUB foo 0\r\n\r\n", "MSG foo 1 0\r\n\r\nMSG foo 2 0\r\n\r\n").await;
    check("SUB\tt\t1\r\nPUB\tt\t1\r\nx\r\n", "MSG t 1 1\r\nx\r\n").await;
    check("sub t 1\npub t r 1\nx\r\n", "MSG t 1 r 1\r\nx\r\n").await;
    check("SUB d 1\r\nSUB e 1\r\nPUB d 1\r\nx\r\nPUB e 1\r\ny\r\n", "MSG d 1 1\r\nx\r\n").await;
    check("PUB a 1\r\nx\r\nSUB a 1\r\nPUB a 1\r\ny\r\nUNSUB 1\r\nPUB a 1\r\nz\r\n", "MSG a 1 1\r\ny\r\n")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_op_may_arrive_byte_by_byte() {
    let server = Server::start();
    let mut client = server.client().await;

    for part in "SUB a 1\r\nPUB a rep 5\r\nhello\r\nPING\r\n".as_bytes().chunks(1) {
        client.send(std::str::from_utf8(part).unwrap()).await;
        tokio::task::yield_now().await;
    }

    client.expect("MSG a 1 rep 5\r\nhello\r\nPONG\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_reach_those_who_take_them_and_are_cut_for_others() {
    let server = Server::start();
    let mut with = server.client().await;
    let mut without = server.client_with(r#""headers":false"#).await;
    with.send("SUB h 1\r\n").await;
    without.send("SUB h 7\r\n").await;
    with.expect_nothing().await;
    without.expect_nothing().await;

    // Twice, so that both ways of finding the receivers are used.
    for _ in 0..3 {
        with.send("HPUB h r 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n").await;
        with.expect("HMSG h 1 r 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n").await;
        without.expect("MSG h 7 r 2\r\nhi\r\n").await;
    }
    with.send("HPUB h 4 6\r\nABCDhi\r\n").await;
    with.expect("HMSG h 1 4 6\r\nABCDhi\r\n").await;
    without.expect("MSG h 7 2\r\nhi\r\n").await;
    without.send("HPUB h 12 12\r\nNATS/1.0\r\n\r\n\r\n").await;
    without.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsub_with_a_maximum_counts_from_the_start_of_the_subscription() {
    let publish = |text: &str| format!("PUB u 1\r\n{text}\r\n");
    let sent = |parts: &[&str]| parts.concat();
    check(
        &sent(&["SUB u 1\r\nUNSUB 1 2\r\n", &publish("1"), &publish("2"), &publish("3")]),
        "MSG u 1 1\r\n1\r\nMSG u 1 1\r\n2\r\n",
    )
    .await;
    check(
        &sent(&["SUB u 1\r\n", &publish("1"), &publish("2"), "UNSUB 1 3\r\n", &publish("3"), &publish("4")]),
        "MSG u 1 1\r\n1\r\nMSG u 1 1\r\n2\r\nMSG u 1 1\r\n3\r\n",
    )
    .await;
    check(
        &sent(&["SUB u 1\r\n", &publish("1"), &publish("2"), "UNSUB 1 2\r\n", &publish("3")]),
        "MSG u 1 1\r\n1\r\nMSG u 1 1\r\n2\r\n",
    )
    .await;
    // The sid is free again afterwards.
    check(
        &sent(&["SUB u 1\r\nUNSUB 1 1\r\n", &publish("1"), "PING\r\nSUB v 1\r\nPUB v 0\r\n\r\n"]),
        "MSG u 1 1\r\n1\r\nPONG\r\nMSG v 1 0\r\n\r\n",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_group_is_its_name_and_one_member_gets_each_message() {
    let server = Server::start();
    let mut one = server.client().await;
    let mut plain = server.client().await;
    one.send("SUB w.* g 1\r\nSUB w.> g 2\r\nSUB w.a other 3\r\n").await;
    plain.send("SUB w.a 9\r\n").await;
    one.expect_nothing().await;
    plain.expect_nothing().await;

    let mut members = [0; 3];
    for _ in 0..200 {
        plain.send("PUB w.a 1\r\nx\r\n").await;
        plain.expect("MSG w.a 9 1\r\nx\r\n").await;
        for _ in 0..2 {
            let line = one.line().await;
            let sid: usize = line.split(' ').nth(2).unwrap().parse().unwrap();
            members[sid - 1] += 1;
            one.expect("x\r\n").await;
        }
    }

    assert_eq!(members[0] + members[1], 200);
    assert_eq!(members[2], 200);
    assert!(members[0] > 20 && members[1] > 20, "{members:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_echo_does_not_hear_itself() {
    let server = Server::start();
    let mut quiet = server.client_with(r#""echo":false"#).await;
    let mut other = server.client().await;
    quiet.send("SUB e 1\r\nSUB e g 2\r\n").await;
    quiet.expect_nothing().await;
    other.send("SUB e g 1\r\n").await;
    other.expect_nothing().await;

    for _ in 0..20 {
        quiet.send("PUB e 1\r\nx\r\n").await;
        other.expect("MSG e 1 1\r\nx\r\n").await;
    }
    quiet.expect_nothing().await;
    other.send("UNSUB 1\r\nPUB e 1\r\ny\r\n").await;
    assert!(quiet.line().await.starts_with("MSG e "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_reaches_nobody_is_answered_at_once() {
    let answer = "HMSG r 5 36 36\r\nNATS/1.0 503\r\nNats-Subject: none\r\n\r\n\r\n";
    check("SUB r 5\r\nPUB none r 0\r\n\r\n", answer).await;
    check("SUB r 5\r\nUNSUB 5 1\r\nPUB none r 0\r\n\r\nPUB none r 0\r\n\r\n", answer).await;
    // No reply subject, no subscription for the reply, or a responder: no answer from us.
    check("SUB r 5\r\nPUB none 0\r\n\r\nPUB none other 0\r\n\r\n", "").await;
    check("SUB r 5\r\nSUB none 6\r\nPUB none r 0\r\n\r\n", "MSG none 6 r 0\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_ask_who_it_is() {
    let auth = AuthConfig {
        users: vec![User {
            name: "ann".into(),
            password: Secret::new("secret"),
            account: AccountName::global(),
            permissions: None,
        }],
        ..AuthConfig::default()
    };
    let server = Server::with(SessionLimits::default(), auth);
    let mut client = server.client_with(r#""user":"ann","pass":"secret","headers":true"#).await;

    client.send("SUB r 1\r\nPUB $SYS.REQ.USER.INFO r 0\r\n\r\n").await;

    assert!(client.line().await.starts_with("MSG r 1 "));
    let answer: serde_json::Value = serde_json::from_str(&client.line().await).unwrap();
    assert_eq!(answer["data"], serde_json::json!({ "user": "ann", "account": "$G", "account_name": "$G" }));
    assert_eq!(answer["server"]["id"], "NTEST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_to_authenticate_is_told_so_at_the_first_byte_of_anything_else() {
    let auth = AuthConfig { token: Some(Secret::new("t0k")), ..AuthConfig::default() };
    let server = Server::with(SessionLimits::default(), auth);

    for sent in ["P", "FOO\r\n", "SUB a 1\r\n"] {
        let mut client = server.dial().await;
        client.send(sent).await;
        client.expect("-ERR 'Authorization Violation'\r\n").await;
        client.expect_end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reply_of_another_client_is_not_where_no_responders_goes() {
    let server = Server::start();
    let mut asking = server.client().await;
    let mut other = server.client().await;
    other.send("SUB r 1\r\n").await;
    other.expect_nothing().await;

    asking.send("PUB none r 0\r\n\r\n").await;

    asking.expect_nothing().await;
    other.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_credentials_get_in() {
    let auth = AuthConfig {
        users: vec![User {
            name: "ann".into(),
            password: Secret::new("pw"),
            account: AccountName::parse("A").unwrap(),
            permissions: None,
        }],
        token: Some(Secret::new("t0k")),
        ..AuthConfig::default()
    };
    let server = Server::with(SessionLimits::default(), auth);
    let violation = "-ERR 'Authorization Violation'\r\n";

    for refused in
        ["PING\r\n", "PUB a 0\r\n\r\n", "CONNECT {}\r\n", "CONNECT {\"user\":\"ann\",\"pass\":\"x\"}\r\n"]
    {
        let mut client = server.dial().await;
        client.send(refused).await;
        client.expect(violation).await;
        client.expect_end().await;
    }
    let mut ann = server.client_with(r#""user":"ann","pass":"pw","headers":true"#).await;
    let mut anybody = server.client_with(r#""auth_token":"t0k""#).await;
    ann.send("SUB a 1\r\n").await;
    ann.expect_nothing().await;
    anybody.send("SUB a 1\r\nPUB a 0\r\n\r\n").await;
    anybody.expect("MSG a 1 0\r\n\r\n").await;
    // Accounts do not meet.
    ann.expect_nothing().await;
    // Another CONNECT may change the account; subscriptions stay behind.
    ann.send("CONNECT {\"auth_token\":\"t0k\",\"verbose\":false,\"pedantic\":false}\r\nPUB a 0\r\n\r\n")
        .await;
    anybody.expect("MSG a 1 0\r\n\r\n").await;
    ann.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_authenticate_in_time_is_closed() {
    let auth = AuthConfig { token: Some(Secret::new("t0k")), ..AuthConfig::default() };
    let limits = SessionLimits { auth_timeout: Duration::from_millis(60), ..SessionLimits::default() };
    let server = Server::with(limits, auth);
    let mut client = server.dial().await;
    let mut good = server.client_with(r#""auth_token":"t0k""#).await;

    client.expect("-ERR 'Authentication Timeout'\r\n").await;
    client.expect_end().await;
    good.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_answer_pings_is_stale() {
    let limits =
        SessionLimits { ping_interval: Duration::from_millis(60), ping_max: 2, ..SessionLimits::default() };
    let server = Server::with(limits, AuthConfig::default());
    let mut client = server.client().await;

    client.expect("PING\r\nPING\r\n-ERR 'Stale Connection'\r\n").await;
    client.expect_end().await;
    assert_eq!(server.sessions.totals().stale_connections, 1);
    wait_until("the end is remembered", || !server.sessions.closed_connections().is_empty()).await;
    assert_eq!(server.sessions.closed_connections()[0].reason, Some("Stale Connection"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_answers_pings_stays() {
    let limits =
        SessionLimits { ping_interval: Duration::from_millis(30), ping_max: 1, ..SessionLimits::default() };
    let server = Server::with(limits, AuthConfig::default());
    let mut client = server.client().await;

    for _ in 0..8 {
        client.expect("PING\r\n").await;
        client.send("PONG\r\n").await;
    }
    assert!(server.sessions.connections()[0].round_trip.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_connections_and_subscriptions_hold() {
    let limits = SessionLimits {
        max_connections: 1,
        max_subscriptions: 2,
        max_subscription_tokens: 3,
        ..SessionLimits::default()
    };
    let server = Server::with(limits, AuthConfig::default());
    let mut client = server.client().await;

    let mut second = server.dial().await;
    second.expect("-ERR 'maximum connections exceeded'\r\n").await;
    second.expect_end().await;
    client.send("SUB a 1\r\nSUB b 2\r\nSUB c 3\r\n").await;
    client.expect("-ERR 'maximum subscriptions exceeded'\r\n").await;
    client.send("UNSUB 1\r\nSUB a.b.c.d 4\r\n").await;
    client.expect("-ERR 'Permissions Violation for Subscription to \"a.b.c.d\", too many tokens'\r\n").await;
    client.send("SUB a.b.c 4\r\n").await;
    client.expect_nothing().await;
    drop(client);
    wait_until("the first is gone", || server.sessions.connections().is_empty()).await;
    server.client().await.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_never_reads_is_cut_off_and_hurts_nobody_else() {
    let limits = SessionLimits { max_pending: 4 << 20, ..SessionLimits::default() };
    let server = Server::with(limits, AuthConfig::default());
    let mut stuck = server.client().await;
    stuck.send("SUB flood 1\r\n").await;
    stuck.expect_nothing().await;
    let mut publisher = server.client().await;
    let part = format!("PUB flood 50000\r\n{}\r\n", "x".repeat(50_000)).repeat(20);

    for _ in 0..100 {
        publisher.send(&part).await;
        if server.sessions.totals().slow_consumers > 0 {
            break;
        }
    }

    wait_until("slow consumer", || server.sessions.totals().slow_consumers == 1).await;
    assert_eq!(server.sessions.closed_connections()[0].reason, Some("Slow Consumer (Pending Bytes)"));
    publisher.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_one_publisher_arrive_complete_and_in_order() {
    let server = Server::start();
    let mut subscriber = server.client().await;
    subscriber.send("SUB n.> 1\r\n").await;
    subscriber.expect_nothing().await;
    let mut publisher = server.client().await;
    let count = 50_000;

    let sending = async {
        for start in (0..count).step_by(1000) {
            let part: String =
                (start..start + 1000).map(|at| format!("PUB n.{} 8\r\n{at:08}\r\n", at % 7)).collect();
            publisher.send(&part).await;
        }
        publisher.expect_nothing().await;
    };
    let receiving = async {
        for at in 0..count {
            subscriber.expect(&format!("MSG n.{} 1 8\r\n{at:08}\r\n", at % 7)).await;
        }
    };
    tokio::join!(sending, receiving);

    let totals = server.sessions.totals();
    assert_eq!((totals.received.msgs, totals.sent.msgs), (count, count));
    assert_eq!(totals.sent.bytes, 8 * count);
    assert_eq!(server.sessions.subscriptions(None)[0].msgs, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_pass_in_both_buffers() {
    let server = Server::start();
    let mut client = server.client().await;
    let body = "y".repeat(1 << 20);

    client.send(&format!("SUB big 1\r\nPUB big {}\r\n{body}\r\nPING\r\n", body.len())).await;

    client.expect(&format!("MSG big 1 {}\r\n{body}\r\nPONG\r\n", body.len())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_hear_of_other_nodes_and_of_lame_duck_mode() {
    let server = Server::start();
    let mut old = server.client().await;
    let mut new = server.dial().await;
    new.send("CONNECT {\"protocol\":1,\"verbose\":false}\r\nPING\r\n").await;
    new.expect("PONG\r\n").await;
    assert!(new.line().await.contains("connect_info"));

    server.sessions.set_connect_urls(vec!["a:1".into()], vec!["b:2".into()]);
    assert!(new.line().await.contains(r#""connect_urls":["a:1","b:2"]"#));
    server.sessions.lame_duck(Duration::from_millis(20), Duration::from_millis(20)).await;

    let info = new.line().await;
    assert!(info.contains(r#""connect_urls":["b:2"]"#) && info.contains(r#""ldm":true"#), "{info}");
    new.expect_end().await;
    old.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_own_messages_go_to_an_inbox_under_their_own_subject() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send("SUB _INBOX.x.* 3\r\n").await;
    client.expect_nothing().await;
    let account = AccountName::global();
    let mut batch = server.router.batch();

    for at in 0..5 {
        let payload = at.to_string();
        let message = MessageRef {
            subject: b"orders.eu",
            reply: b"$JS.ACK.1",
            header: b"NATS/1.0\r\n\r\n",
            payload: payload.as_bytes(),
        };
        assert_eq!(batch.send(&account, b"_INBOX.x.1", message), 1);
        assert_eq!(batch.send(&account, b"_INBOX.y.1", message), 0);
    }
    batch.flush();

    for at in 0..5 {
        client.expect(&format!("HMSG orders.eu 3 $JS.ACK.1 12 13\r\nNATS/1.0\r\n\r\n{at}\r\n")).await;
    }
    assert!(server.router.has_interest(&account, b"_INBOX.x.9"));
    let told = Arc::new(Told::default());
    let watcher: std::sync::Weak<Told> = Arc::downgrade(&told);
    server.router.watchers().add(&account, b"_INBOX.x.9", watcher, || false);
    client.send("UNSUB 3\r\n").await;
    client.expect_nothing().await;
    assert_eq!(told.0.load(Ordering::Relaxed), 1);
    assert!(!server.router.has_interest(&account, b"_INBOX.x.9"));
    assert_eq!(batch.send(&account, b"_INBOX.x.1", MessageRef::default()), 0);
}

/// How often it was told of subscribers.
#[derive(Default)]
struct Told(AtomicU64);

impl InterestWatcher for Told {
    fn interest_moved(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A stream side that captures `orders.>`, and can be full.
#[derive(Default)]
struct Captured {
    generation: AtomicU64,
    seen: Mutex<Vec<(String, String, String)>>,
    batches: AtomicU64,
    full: Mutex<Option<tokio::sync::oneshot::Receiver<()>>>,
}

struct Ingest(Arc<Captured>);

impl Services for Ingest {
    fn resolve(&self, _: &AccountName, subject: &[u8]) -> Resolved {
        if subject.starts_with(b"orders.") {
            Resolved { sinks: vec![Arc::new(Self(Arc::clone(&self.0)))], responders: true }
        } else {
            Resolved { sinks: Vec::new(), responders: subject == b"leaderless.x" }
        }
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Relaxed)
    }
}

impl Sink for Ingest {
    fn id(&self) -> u64 {
        17
    }

    fn accept(&self, from: &Arc<ClientInfo>, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        assert_eq!(from.account, AccountName::global());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.0.batches.fetch_add(1, Ordering::Relaxed);
        self.0.seen.lock().extend(
            batch
                .items
                .iter()
                .map(|item| (text(batch.subject(item)), text(batch.reply(item)), text(batch.payload(item)))),
        );
        let full = self.0.full.lock().take()?;
        Some(Box::pin(async move {
            let _ = full.await;
        }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sinks_get_what_one_read_held_in_one_batch_before_the_pong() {
    let server = Server::start();
    let captured = Arc::new(Captured::default());
    server.router.attach_services(Arc::new(Ingest(Arc::clone(&captured))));
    let mut client = server.client().await;

    let part: String = (0..500).map(|at| format!("PUB orders.{} r.{at} 3\r\n{at:03}\r\n", at % 3)).collect();
    client.send(&(part + "PUB other 0\r\n\r\nPING\r\n")).await;
    client.expect("PONG\r\n").await;

    let seen = captured.seen.lock().clone();
    let expected: Vec<_> =
        (0..500).map(|at| (format!("orders.{}", at % 3), format!("r.{at}"), format!("{at:03}"))).collect();
    assert_eq!(seen, expected);
    assert!(captured.batches.load(Ordering::Relaxed) < 20, "{:?}", captured.batches);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_before_a_subscription_changes_is_not_lost_with_the_routes() {
    let server = Server::start();
    let captured = Arc::new(Captured::default());
    server.router.attach_services(Arc::new(Ingest(Arc::clone(&captured))));
    let mut subscriber = server.client().await;
    subscriber.send("SUB news 1\r\nPING\r\n").await;
    subscriber.expect("PONG\r\n").await;
    let mut client = server.client().await;

    let chunk = "PUB orders.1 1\r\na\r\nPUB news 1\r\nx\r\nSUB inbox 7\r\nPUB orders.2 1\r\nb\r\nUNSUB 7\r\n\
        PUB orders.1 1\r\nc\r\nPUB news 1\r\ny\r\nSUB inbox 8\r\nPING\r\n";
    client.send(chunk).await;
    client.expect("PONG\r\n").await;

    let payloads: Vec<String> = captured.seen.lock().iter().map(|(_, _, payload)| payload.clone()).collect();
    assert_eq!(payloads, ["a", "b", "c"]);
    subscriber.expect("MSG news 1 1\r\nx\r\nMSG news 1 1\r\ny\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_counts_as_responder_and_its_client_is_not_told_503() {
    let server = Server::start();
    server.router.attach_services(Arc::new(Ingest(Arc::default())));
    let mut client = server.client().await;

    client.send("SUB r 1\r\nPUB orders.x r 0\r\n\r\nPUB leaderless.x r 0\r\n\r\n").await;
    client.expect_nothing().await;
    client.send("PUB none r 0\r\n\r\n").await;
    assert!(client.line().await.starts_with("HMSG r 1 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sink_stops_the_reading_of_that_client_only() {
    let server = Server::start();
    let captured = Arc::new(Captured::default());
    server.router.attach_services(Arc::new(Ingest(Arc::clone(&captured))));
    let (room, full) = tokio::sync::oneshot::channel();
    *captured.full.lock() = Some(full);
    let mut client = server.client().await;
    let mut other = server.client().await;

    client.send("PUB orders.a 1\r\n1\r\n").await;
    wait_until("the first arrived", || captured.seen.lock().len() == 1).await;
    client.send("PUB orders.a 1\r\n2\r\n").await;
    other.send("PUB orders.b 1\r\n3\r\n").await;
    other.expect_nothing().await;
    assert_eq!(captured.seen.lock().len(), 2);
    room.send(()).unwrap();

    wait_until("the second arrived", || captured.seen.lock().len() == 3).await;
    assert_eq!(captured.seen.lock()[2].2, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_of_clients_that_left_are_gone() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send("SUB a 1\r\nSUB a.> g 2\r\n").await;
    client.expect_nothing().await;
    assert!(server.router.has_interest(&AccountName::global(), b"a"));

    drop(client);

    wait_until("it is gone", || server.sessions.connections().is_empty()).await;
    assert!(!server.router.has_interest(&AccountName::global(), b"a"));
    assert_eq!(server.router.accounts()[0].1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_can_close_one_connection() {
    let server = Server::start();
    let mut one = server.client().await;
    let mut two = server.client().await;

    assert!(server.sessions.kick(1));
    assert!(!server.sessions.kick(99));

    one.expect_end().await;
    two.expect_nothing().await;
}

fn limited(limits: ConnectionLimits) -> Server {
    let account = AccountName::parse("A").unwrap();
    let user = |name: &str, account: &AccountName| User {
        name: name.into(),
        password: Secret::new(""),
        account: account.clone(),
        permissions: None,
    };
    let auth = AuthConfig {
        users: vec![user("ann", &account), user("bob", &AccountName::global())],
        guest: Some(user("ann", &account).identity()),
        ..AuthConfig::default()
    };
    let session = SessionLimits {
        max_subscriptions: 2,
        accounts: [(account, limits)].into(),
        ..SessionLimits::default()
    };
    Server::with(session, auth)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_has_as_many_connections_as_it_may_have() {
    let server = limited(ConnectionLimits { max_connections: Some(2), ..ConnectionLimits::default() });
    let refused = "-ERR 'maximum account active connections exceeded'\r\n";
    // A guest is of the account, too, whether it has said so or not.
    let mut guest = server.dial().await;
    guest.send("PING\r\n").await;
    guest.expect("PONG\r\n").await;
    let mut ann = server.client_with(r#""user":"ann""#).await;

    for said in ["CONNECT {\"user\":\"ann\"}\r\n", "CONNECT {}\r\n", "PING\r\n"] {
        let mut more = server.dial().await;
        more.send(said).await;
        more.expect(refused).await;
        more.expect_end().await;
    }
    let mut bob = server.dial().await;
    bob.send("CONNECT {\"user\":\"bob\",\"verbose\":false}\r\nPING\r\n").await;
    bob.expect("PONG\r\n").await;

    // Who comes again under the same name keeps its place; who leaves makes room.
    ann.send("CONNECT {\"user\":\"ann\",\"verbose\":false}\r\n").await;
    ann.expect_nothing().await;
    ann.send("CONNECT {\"user\":\"bob\",\"verbose\":false}\r\n").await;
    ann.expect_nothing().await;
    let _second = server.client_with(r#""user":"ann""#).await;
    drop(guest);
    wait_until("the guest is gone", || server.sessions.connections().len() == 3).await;
    let _third = server.client_with(r#""user":"ann""#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_lowers_the_limits_of_the_server_and_never_raises_them() {
    let lower =
        ConnectionLimits { max_subscriptions: Some(1), max_payload: Some(5), ..ConnectionLimits::default() };
    let higher = ConnectionLimits {
        max_subscriptions: Some(9),
        max_payload: Some(1 << 30),
        ..ConnectionLimits::default()
    };
    for (limits, subscriptions, payload) in [(lower, 1, 5), (higher, 2, 1 << 20)] {
        let server = limited(limits);
        let mut ann = server.dial().await;
        ann.send("CONNECT {\"user\":\"ann\",\"protocol\":1,\"verbose\":false}\r\nPING\r\n").await;
        ann.expect("PONG\r\n").await;
        let info = ann.line().await;
        assert!(info.contains(&format!("\"max_payload\":{payload},")), "{info}");

        ann.send("SUB a 1\r\nSUB a 2\r\nSUB a 3\r\n").await;
        ann.expect(&"-ERR 'maximum subscriptions exceeded'\r\n".repeat(3 - subscriptions)).await;
        ann.send(&format!("PUB b {payload}\r\n{}\r\n", "x".repeat(payload))).await;
        ann.expect_nothing().await;
        ann.send(&format!("PUB b {}\r\n", payload + 1)).await;
        ann.expect("-ERR 'Maximum Payload Violation'\r\n").await;

        let mut bob = server.client_with(r#""user":"bob""#).await;
        bob.send("SUB c 1\r\nSUB c 2\r\nPUB b 9\r\n123456789\r\n").await;
        bob.expect_nothing().await;
    }
}
