use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::permission::{
    Grant, GroupFilter, Permissions, PublishGrant, Responses, SubscribeGrant,
};
use levee_protocol::ids::AccountName;
use levee_protocol::subject::Filter;
use levee_protocol::time::Nanos;

use crate::router::MessageRef;
use crate::session::testing::{Client, Server};
use crate::session::{AuthConfig, Secret, SessionLimits, User};

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap()
}

fn publish(allow: &[&str], deny: &[&str]) -> Grant {
    let filters = |list: &[&str]| list.iter().map(|text| filter(text)).collect();
    Grant { publish: PublishGrant { allow: filters(allow), deny: filters(deny) }, ..Grant::default() }
}

fn subscribe(allow: &[&str], deny: &[&str]) -> Grant {
    let group = |text: &&str| match text.split_once(' ') {
        None => GroupFilter { filter: filter(text), queue: None },
        Some((subjects, queue)) => GroupFilter { filter: filter(subjects), queue: Some(filter(queue)) },
    };
    let groups = |list: &[&str]| list.iter().map(group).collect();
    Grant { subscribe: SubscribeGrant { allow: groups(allow), deny: groups(deny) }, ..Grant::default() }
}

fn answers(max: i64, expires: Nanos) -> Grant {
    Grant { responses: Some(Responses { max, expires }), ..Grant::default() }
}

/// A server with `any`, who may do everything, and `some`, who may do this.
fn server(grant: Grant) -> Server {
    let user = |name: &str, grant: Option<Grant>| User {
        name: name.into(),
        password: Secret::new(""),
        account: AccountName::global(),
        permissions: grant.map(|grant| Arc::new(Permissions::new(grant))),
    };
    let auth =
        AuthConfig { users: vec![user("any", None), user("some", Some(grant))], ..AuthConfig::default() };
    Server::with(SessionLimits::default(), auth)
}

async fn client(server: &Server, user: &str) -> Client {
    server.client_with(&format!(r#""user":"{user}","headers":true,"no_responders":true"#)).await
}

fn refused(subject: &str) -> String {
    format!("-ERR 'Permissions Violation for Publish to \"{subject}\"'\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_published_is_refused_and_the_connection_goes_on() {
    let server = server(publish(&["a.*"], &["a.no"]));
    let mut any = client(&server, "any").await;
    any.send("SUB > 1\r\n").await;
    any.expect_nothing().await;
    let mut some = server.dial().await;

    some.send("CONNECT {\"user\":\"some\",\"headers\":true}\r\n").await;
    some.send(
        "PUB a.x 1\r\nx\r\nPUB a.no 1\r\nx\r\nPUB b _R_.x 1\r\nx\r\nHPUB b 12 13\r\nNATS/1.0\r\n\r\nx\r\n",
    )
    .await;
    some.send("PUB a.no 1\r\nx\r\nPUB a.no 1\r\nx\r\nPUB a.x r 1\r\ny\r\n").await;

    let (no, b) = (refused("a.no"), refused("b"));
    some.expect(&format!("+OK\r\n+OK\r\n{no}{b}{b}{no}{no}+OK\r\n")).await;
    any.expect("MSG a.x 1 1\r\nx\r\nMSG a.x 1 r 1\r\ny\r\n").await;
    any.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_is_for_the_user_it_was_made_for() {
    let server = server(publish(&[], &["a"]));
    let mut watching = client(&server, "any").await;
    watching.send("SUB a 1\r\n").await;
    watching.expect_nothing().await;
    let mut one = client(&server, "some").await;
    let connect =
        |user: &str| format!("CONNECT {{\"user\":\"{user}\",\"verbose\":false,\"pedantic\":false}}\r\n");

    // Often enough that the route is kept.
    one.send(&"PUB a 0\r\n\r\n".repeat(3)).await;
    one.expect(&refused("a").repeat(3)).await;
    one.send(&(connect("any") + &"PUB a 0\r\n\r\n".repeat(3))).await;
    one.expect_nothing().await;
    one.send(&(connect("some") + &"PUB a 0\r\n\r\n".repeat(3))).await;

    one.expect(&refused("a").repeat(3)).await;
    watching.expect(&"MSG a 1 0\r\n\r\n".repeat(3)).await;
    watching.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wider_subscription_does_not_hear_what_is_denied() {
    let server = server(subscribe(&[], &["a.no", "g q"]));
    let (mut any, mut some) = (client(&server, "any").await, client(&server, "some").await);
    let all = "PUB a.no 1\r\nx\r\nPUB a.b 1\r\ny\r\nPUB g 1\r\nz\r\n";
    // The publisher has made its routes before, and keeps them.
    any.send(&all.repeat(3)).await;
    any.expect_nothing().await;

    some.send("SUB a.no 1\r\nSUB a.* 2\r\nSUB g q 3\r\nSUB g other 4\r\n").await;
    some.expect("-ERR 'Permissions Violation for Subscription to \"a.no\"'\r\n").await;
    some.expect("-ERR 'Permissions Violation for Subscription to \"g\" using queue \"q\"'\r\n").await;
    some.expect_nothing().await;
    any.send(&all.repeat(3)).await;
    any.expect_nothing().await;

    some.expect(&"MSG a.b 2 1\r\ny\r\nMSG g 4 1\r\nz\r\n".repeat(3)).await;
    some.expect_nothing().await;
    // Nobody hears it, so nobody responds.
    any.send("SUB r 1\r\nPUB a.no r 0\r\n\r\n").await;
    any.expect("HMSG r 1 36 36\r\nNATS/1.0 503\r\nNats-Subject: a.no\r\n\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_may_not_hear_it_leaves_it_to_the_others() {
    let server = server(subscribe(&[], &["a.no"]));
    let (mut any, mut some) = (client(&server, "any").await, client(&server, "some").await);
    for client in [&mut any, &mut some] {
        client.send("SUB a.* q 1\r\n").await;
        client.expect_nothing().await;
    }

    let mut publisher = client(&server, "any").await;
    publisher.send(&"PUB a.no 0\r\n\r\n".repeat(20)).await;
    publisher.expect_nothing().await;

    any.expect(&"MSG a.no 1 0\r\n\r\n".repeat(20)).await;
    some.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_sends_by_way_of_an_inbox_is_judged_by_what_it_is_about() {
    let server = server(subscribe(&[], &["a.no"]));
    let mut some = client(&server, "some").await;
    some.send("SUB inbox 1\r\nSUB inbox q 2\r\n").await;
    some.expect_nothing().await;
    let send = |subject: &str| {
        let message = MessageRef { subject: subject.as_bytes(), ..MessageRef::default() };
        server.router.send_one(&AccountName::global(), b"inbox", message)
    };

    // As on nats-server, from the first wide subscription on.
    assert_eq!(send("a.no"), 2);
    some.expect("MSG a.no 1 0\r\n\r\nMSG a.no 2 0\r\n\r\n").await;
    some.send("SUB a.* 3\r\n").await;
    some.expect_nothing().await;

    assert_eq!((send("a.no"), send("a.yes")), (0, 2));
    some.expect("MSG a.yes 1 0\r\n\r\nMSG a.yes 2 0\r\n\r\n").await;
    some.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_asked_may_answer_and_nobody_else() {
    let server = server(answers(1, Nanos::from_secs(60)));
    let (mut any, mut some) = (client(&server, "any").await, client(&server, "some").await);
    let mut other = client(&server, "some").await;
    some.send("SUB q.> 1\r\nSUB g work 2\r\n").await;
    some.expect_nothing().await;
    any.send("SUB r.> 1\r\nPUB q.1 r.1 0\r\n\r\nPUB q.2 r.2 0\r\n\r\nPUB g r.3 0\r\n\r\nPUB q.3 0\r\n\r\n")
        .await;
    any.expect_nothing().await;
    some.expect("MSG q.1 1 r.1 0\r\n\r\nMSG q.2 1 r.2 0\r\n\r\nMSG g 2 r.3 0\r\n\r\nMSG q.3 1 0\r\n\r\n")
        .await;

    for reply in ["r.1", "r.2", "r.3"] {
        let answer = format!("PUB {reply} 2\r\nok\r\n");
        other.send(&answer).await;
        other.expect(&refused(reply)).await;
        some.send(&answer.repeat(2)).await;
        some.expect(&refused(reply)).await;
        any.expect(&format!("MSG {reply} 1 2\r\nok\r\n")).await;
    }
    some.send("PUB r.4 0\r\n\r\nPUB q.1 0\r\n\r\n").await;
    some.expect(&(refused("r.4") + &refused("q.1"))).await;
    any.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_come_too_late() {
    let server = server(answers(-1, Nanos::from_millis(50)));
    let (mut any, mut some) = (client(&server, "any").await, client(&server, "some").await);
    some.send("SUB q 1\r\n").await;
    some.expect_nothing().await;
    any.send("PUB q r 0\r\n\r\n").await;
    some.expect("MSG q 1 r 0\r\n\r\n").await;

    tokio::time::sleep(Duration::from_millis(60)).await;
    some.send("PUB r 0\r\n\r\n").await;

    some.expect(&refused("r")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_quoted_as_nats_server_quotes_them() {
    let server = server(Grant { publish: publish(&["ok"], &[]).publish, ..subscribe(&["ok"], &[]) });
    let mut some = client(&server, "some").await;

    some.send("PUB a\"\\b\x01 0\r\n\r\nSUB a..b \"q\" 1\r\nSUB ok _sys_ 2\r\n").await;

    some.expect("-ERR 'Permissions Violation for Publish to \"a\\\"\\\\b\\x01\"'\r\n").await;
    some.expect("-ERR 'Permissions Violation for Subscription to \"a..b\" using queue \"\\\"q\\\"\"'\r\n")
        .await;
    some.expect("-ERR 'Permissions Violation for Subscription to \"ok\" using queue \"_sys_\"'\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_is_told_what_it_may_do() {
    let grant = Grant {
        publish: publish(&["$SYS.REQ.USER.INFO", "a"], &["b"]).publish,
        ..subscribe(&["r", "c q.*"], &[])
    };
    let server = server(Grant { responses: Some(Responses::default()), ..grant });
    let mut some = client(&server, "some").await;

    some.send("SUB r 1\r\nPUB $SYS.REQ.USER.INFO r 0\r\n\r\n").await;

    assert!(some.line().await.starts_with("MSG r 1 "));
    let answer: serde_json::Value = serde_json::from_str(&some.line().await).unwrap();
    let expected = serde_json::json!({
        "publish": { "allow": ["$SYS.REQ.USER.INFO", "a"], "deny": ["b"] },
        "subscribe": { "allow": ["r", "c q.*"] },
        "responses": { "max": 1, "ttl": 120_000_000_000_u64 },
    });
    assert_eq!(answer["data"]["permissions"], expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_brings_no_credentials_may_do_what_the_guest_may() {
    let guest = User {
        name: "guest".into(),
        password: Secret::new("secret"),
        account: AccountName::global(),
        permissions: Some(Arc::new(Permissions::new(publish(&["a"], &[])))),
    };
    let auth = AuthConfig { guest: Some(guest.identity()), users: vec![guest], ..AuthConfig::default() };
    let server = Server::with(SessionLimits::default(), auth);
    let mut client = server.dial().await;
    let tries = "PUB a 0\r\n\r\nPUB b 0\r\n\r\n";

    client.send(tries).await;
    client.expect(&("+OK\r\n".to_owned() + &refused("b"))).await;
    client.send(&("CONNECT {}\r\n".to_owned() + tries)).await;
    client.expect(&("+OK\r\n+OK\r\n".to_owned() + &refused("b"))).await;
}
