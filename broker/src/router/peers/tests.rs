//! Two and three nodes over real sockets: what spreads, what is delivered where, and who is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::{AccountName, NodeId};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::router::MessageRef;
use crate::router::peers::{
    AddressBook, CallError, PeerEvent, PeerGone, Peers, PeersConfig, incoming, reachable,
};
use crate::runtime::net::{self, TcpStream};
use crate::runtime::tasks;
use crate::session::testing::{Client, Server, wait_until};

/// A node without the stream side.
struct Node {
    server: Server,
    peers: Arc<Peers>,
    address: SocketAddr,
    _tasks: tasks::Scope,
}

impl Node {
    fn start(id: u64, routes: &[SocketAddr]) -> Self {
        Self::named(id, &format!("n{id}"), "C", routes)
    }

    fn named(id: u64, name: &str, cluster: &str, routes: &[SocketAddr]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), id, name, cluster, routes)
    }

    fn at(listen: SocketAddr, id: u64, name: &str, cluster: &str, routes: &[SocketAddr]) -> Self {
        let server = Server::start();
        // The port of a node that was just dropped is free as soon as its tasks have noticed.
        let mut tries = 0;
        let listener = loop {
            match net::listen(listen) {
                Ok(listener) => break listener,
                Err(error) => assert!(tries < 200, "{listen}: {error}"),
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(10));
        };
        let address = listener.local_addr().unwrap();
        let peers = Peers::new(
            Arc::clone(&server.router),
            PeersConfig {
                node: NodeId(id),
                server_name: name.into(),
                cluster_name: cluster.into(),
                version: "0".into(),
                cluster_address: address.to_string(),
                routes: routes.iter().map(ToString::to_string).collect(),
                client_urls: vec![server.address.to_string()],
                jetstream: true,
            },
        );
        let tasks = tasks::Scope::default();
        let grpc = tonic::transport::Server::builder()
            .add_service(peers.service())
            .serve_with_incoming(incoming(listener));
        tasks.spawn("cluster port", grpc);
        tasks.spawn("connect urls", gossip(Arc::clone(&peers), Arc::clone(&server.sessions)));
        peers.start();
        Self { server, peers, address, _tasks: tasks }
    }

    fn knows(&self, others: &[u64]) -> bool {
        self.peers.peers().iter().map(|peer| peer.node.0).eq(others.iter().copied())
    }

    fn has_interest(&self, subject: &str) -> bool {
        self.server.router.has_interest(&AccountName::global(), subject.as_bytes())
    }
}

async fn gossip(peers: Arc<Peers>, sessions: Arc<crate::session::Sessions>) {
    let mut events = peers.events();
    loop {
        let (own, others) = peers.client_urls();
        sessions.set_connect_urls(own, others);
        if events.recv().await.is_err() {
            return;
        }
    }
}

async fn pair() -> (Node, Node) {
    let one = Node::start(1, &[]);
    let two = Node::start(2, &[one.address]);
    wait_until("both are connected", || one.knows(&[2]) && two.knows(&[1])).await;
    (one, two)
}

/// Three nodes of which only one is in the configuration of the others.
async fn trio() -> [Node; 3] {
    let one = Node::start(1, &[]);
    let two = Node::start(2, &[one.address]);
    let three = Node::start(3, &[one.address]);
    wait_until("all are connected", || one.knows(&[2, 3]) && two.knows(&[1, 3]) && three.knows(&[1, 2]))
        .await;
    [one, two, three]
}

async fn subscriber(node: &Node, lines: &str) -> Client {
    let mut client = node.server.client().await;
    client.send(lines).await;
    client.expect_nothing().await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_where_somebody_wants_them() {
    let [one, two, three] = trio().await;
    let mut here = subscriber(&one, "SUB a.* 1\r\n").await;
    let mut there = subscriber(&two, "SUB a.> 1\r\nSUB a.b 2\r\n").await;
    wait_until("interest spread", || three.has_interest("a.b") && one.has_interest("a.b.c")).await;

    let mut publisher = three.server.client().await;
    publisher.send("HPUB a.b r 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPUB c 1\r\nx\r\n").await;
    publisher.expect_nothing().await;

    here.expect("HMSG a.b 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n").await;
    let mut sids = [there.line().await, String::new()];
    there.expect("NATS/1.0\r\n\r\nhi\r\n").await;
    sids[1] = there.line().await;
    there.expect("NATS/1.0\r\n\r\nhi\r\n").await;
    sids.sort();
    assert_eq!(sids, ["HMSG a.b 1 r 12 14\r\n", "HMSG a.b 2 r 12 14\r\n"]);
    here.expect_nothing().await;
    there.expect_nothing().await;
    let sent = |node: &Node| node.peers.peers().iter().map(|peer| peer.sent.msgs).collect::<Vec<_>>();
    assert_eq!(sent(&three), [1, 1]);
    assert_eq!(sent(&one), [0, 0], "one hop only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interest_that_is_gone_stops_the_messages() {
    let (one, two) = pair().await;
    let mut there = subscriber(&two, "SUB a 1\r\nSUB a 2\r\n").await;
    wait_until("interest spread", || one.has_interest("a")).await;

    there.send("UNSUB 1\r\n").await;
    there.expect_nothing().await;
    assert!(one.has_interest("a"));
    there.send("UNSUB 2\r\n").await;
    there.expect_nothing().await;

    wait_until("interest is gone", || !one.has_interest("a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_late_learns_what_everybody_wants() {
    let one = Node::start(1, &[]);
    let _there = subscriber(&one, "SUB early.* g 1\r\nSUB early.x 2\r\n").await;

    let late = Node::start(2, &[one.address]);

    wait_until("the late one knows", || late.has_interest("early.x")).await;
    wait_until("it is listed", || late.peers.peers().first().is_some_and(|peer| peer.subscriptions == 2))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_group_delivers_once_in_the_cluster_and_prefers_the_own_node() {
    let [one, two, three] = trio().await;
    let mut near = subscriber(&one, "SUB q g 1\r\n").await;
    let mut far = subscriber(&two, "SUB q g 1\r\n").await;
    let mut farther = subscriber(&three, "SUB q g 1\r\nSUB q 2\r\n").await;
    wait_until("interest spread", || {
        one.peers.peers().iter().map(|peer| peer.subscriptions).sum::<usize>() == 3
    })
    .await;
    let mut publisher = one.server.client().await;

    for _ in 0..50 {
        publisher.send("PUB q 1\r\nx\r\n").await;
        near.expect("MSG q 1 1\r\nx\r\n").await;
        farther.expect("MSG q 2 1\r\nx\r\n").await;
    }
    far.expect_nothing().await;
    farther.expect_nothing().await;

    near.send("UNSUB 1\r\n").await;
    near.expect_nothing().await;
    publisher.send(&"PUB q 1\r\nx\r\n".repeat(200)).await;
    publisher.expect_nothing().await;
    let received = |node: &Node, sid: &str| {
        let views = node.server.sessions.subscriptions(None);
        views.iter().find(|view| view.sid == sid && view.queue == "g").map_or(0, |view| view.msgs)
    };
    wait_until("each was delivered to one", || received(&two, "1") + received(&three, "1") == 200).await;
    assert!(received(&two, "1") > 40 && received(&three, "1") > 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_and_reply_work_at_once_and_nobody_is_told_of_elsewhere() {
    let (one, two) = pair().await;
    let mut responder = subscriber(&two, "SUB svc g 1\r\n").await;
    wait_until("interest spread", || one.has_interest("svc")).await;
    let mut requestor = one.server.client().await;

    for round in 0..20 {
        let inbox = format!("_INBOX.{round}");
        // The subscription for the answer, and the request, in one write.
        requestor.send(&format!("SUB {inbox} {round}\r\nPUB svc {inbox} 1\r\n?\r\n")).await;
        responder.expect(&format!("MSG svc 1 {inbox} 1\r\n?\r\n")).await;
        responder.send(&format!("PUB {inbox} 1\r\n!\r\n")).await;
        requestor.expect(&format!("MSG {inbox} {round} 1\r\n!\r\n")).await;
    }

    drop(responder);
    wait_until("the responder is gone", || !one.has_interest("svc")).await;
    requestor.send("SUB r r\r\nPUB svc r 0\r\n\r\n").await;
    requestor.expect("HMSG r r 35 35\r\nNATS/1.0 503\r\nNats-Subject: svc\r\n\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_own_messages_cross_nodes_under_their_own_subject() {
    let (one, two) = pair().await;
    let mut client = subscriber(&two, "SUB _INBOX.a.* 1\r\n").await;
    wait_until("interest spread", || one.has_interest("_INBOX.a.1")).await;

    let message = MessageRef { subject: b"orders.eu", reply: b"ack", header: b"", payload: b"pay" };
    assert_eq!(one.server.router.send_one(&AccountName::global(), b"_INBOX.a.1", message), 1);

    client.expect("MSG orders.eu 1 ack 3\r\npay\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_messages_cross_in_order_and_complete() {
    let (one, two) = pair().await;
    let mut client = subscriber(&two, "SUB n.> 1\r\n").await;
    wait_until("interest spread", || one.has_interest("n.1")).await;
    let mut publisher = one.server.client().await;
    let count = 30_000;

    let sending = async {
        for start in (0..count).step_by(1000) {
            let part: String =
                (start..start + 1000).map(|at| format!("PUB n.{} 8\r\n{at:08}\r\n", at % 7)).collect();
            publisher.send(&part).await;
        }
    };
    let receiving = async {
        for at in 0..count {
            client.expect(&format!("MSG n.{} 1 8\r\n{at:08}\r\n", at % 7)).await;
        }
    };
    tokio::join!(sending, receiving);
    assert_eq!(one.peers.peers()[0].dropped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_do_not_meet_across_nodes_either() {
    let (one, two) = pair().await;
    let _client = subscriber(&two, "SUB a 1\r\n").await;
    wait_until("interest spread", || one.has_interest("a")).await;

    let other = AccountName::parse("OTHER").unwrap();

    assert!(!one.server.router.has_interest(&other, b"a"));
    assert_eq!(
        one.server.router.send_one(&other, b"a", MessageRef { subject: b"a", ..MessageRef::default() }),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_takes_its_interest_along_and_brings_it_back() {
    let one = Node::start(1, &[]);
    let two = Node::start(2, &[one.address]);
    let _client = subscriber(&two, "SUB a 1\r\n").await;
    wait_until("interest spread", || one.has_interest("a") && one.knows(&[2])).await;
    let mut events = one.peers.events();
    let address = two.address;

    two.peers.stop();
    drop(two);
    wait_until("it is gone", || one.knows(&[]) && !one.has_interest("a")).await;
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Down(NodeId(2)));
    assert_eq!(one.peers.forward(NodeId(2), 1, Bytes::new()), Err(PeerGone));

    let again = Node::at(address, 2, "n2", "C", &[]);
    // It has no route: the other one dials.
    wait_until("it is back", || one.knows(&[2]) && again.knows(&[1])).await;
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Up(NodeId(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_arrive_in_order_and_calls_are_answered() {
    let (one, two) = pair().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    two.peers.on_forward(7, Arc::new(move |from, payload: Bytes| sink.lock().push((from, payload))));
    two.peers.on_call(
        9,
        Arc::new(|from, payload: Bytes| {
            Box::pin(async move {
                if payload.as_ref() == b"slow" {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                }
                Bytes::from(format!("{} said {}", from.0, String::from_utf8_lossy(&payload)))
            })
        }),
    );

    for at in 0..100_u8 {
        one.peers.forward(NodeId(2), 7, Bytes::copy_from_slice(&[at])).unwrap();
    }
    let call = |payload: &'static str, timeout| {
        one.peers.call(NodeId(2), 9, Bytes::from_static(payload.as_bytes()), Duration::from_millis(timeout))
    };
    assert_eq!(call("hi", 5000).await.unwrap(), "1 said hi");
    assert_eq!(call("slow", 20).await, Err(CallError::Timeout));
    assert_eq!(
        one.peers.call(NodeId(2), 3, Bytes::new(), Duration::from_secs(5)).await,
        Err(CallError::NobodyAnswers)
    );
    assert_eq!(
        one.peers.call(NodeId(8), 9, Bytes::new(), Duration::from_secs(5)).await,
        Err(CallError::Gone)
    );
    assert_eq!(
        two.peers.call(NodeId(2), 9, Bytes::from("me"), Duration::from_secs(5)).await.unwrap(),
        "2 said me"
    );

    // The call came behind the forwards.
    let expected: Vec<_> = (0..100_u8).map(|at| (NodeId(1), Bytes::copy_from_slice(&[at]))).collect();
    assert_eq!(*seen.lock(), expected);

    let lost = call("slow", 20_000);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        two.peers.stop();
    };
    assert_eq!(tokio::join!(lost, stop).0, Err(CallError::Gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_of_all_nodes() {
    let one = Node::start(1, &[]);
    let mut client = one.server.dial().await;
    client.send("CONNECT {\"protocol\":1,\"verbose\":false}\r\nPING\r\n").await;
    client.expect("PONG\r\n").await;
    assert!(client.line().await.contains("connect_info"));

    let two = Node::start(2, &[one.address]);

    let info = client.line().await;
    let expected = format!(r#""connect_urls":["{}","{}"]"#, one.server.address, two.server.address);
    assert!(info.contains(&expected), "{info}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_tells_of_itself_reaches_its_peers() {
    let (one, two) = pair().await;
    let mut events = one.peers.events();

    two.peers.set_meta(Bytes::from_static(b"news"));

    assert_eq!(events.recv().await.unwrap(), PeerEvent::Changed(NodeId(2)));
    assert_eq!(one.peers.peers()[0].meta, "news");
    assert_eq!(one.peers.address(NodeId(2)), Some(two.address.to_string()));
    assert_eq!(one.peers.address(NodeId(9)), None);
}

async fn refusal(node: &Node, events: &mut tokio::sync::broadcast::Receiver<PeerEvent>) -> String {
    loop {
        if let PeerEvent::Refused { address, reason } = events.recv().await.unwrap() {
            assert_eq!(address, node.address.to_string());
            return reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_belong_are_refused_with_a_reason() {
    let one = Node::start(1, &[]);
    one.peers.set_cluster_uid("u1");

    let stranger = Node::named(2, "n2", "OTHER", &[one.address]);
    let mut events = stranger.peers.events();
    assert!(refusal(&one, &mut events).await.contains("in cluster 'C'"));
    let twin = Node::named(3, "n1", "C", &[one.address]);
    assert!(refusal(&one, &mut twin.peers.events()).await.contains("names must be unique"));
    let copy = Node::named(1, "n4", "C", &[one.address]);
    assert!(refusal(&one, &mut copy.peers.events()).await.contains("copy of the store directory"));
    let foreign = Node::named(5, "n5", "C", &[]);
    foreign.peers.set_cluster_uid("u2");
    let mut events = foreign.peers.events();
    foreign.peers.add_route(&one.address.to_string());
    assert!(refusal(&one, &mut events).await.contains("belongs to another cluster"));

    let good = Node::start(6, &[one.address]);
    wait_until("a good one", || good.knows(&[1])).await;
    let copy = Node::named(6, "n8", "C", &[one.address]);
    assert!(
        refusal(&one, &mut copy.peers.events()).await.contains("copy of the store directory of server 'n6'")
    );
    let copy = Node::named(6, "n6", "C", &[one.address]);
    assert!(
        refusal(&one, &mut copy.peers.events()).await.contains("copy of the store directory of server 'n6'")
    );
    let second = Node::named(7, "n6", "C", &[one.address]);
    assert!(refusal(&one, &mut second.peers.events()).await.contains("names must be unique"));
    assert!(one.knows(&[6]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_to_itself_is_silently_ignored() {
    let one = Node::start(1, &[]);
    let mut events = one.peers.events();
    one.peers.add_route(&one.address.to_string());
    let two = Node::start(2, &[one.address]);

    wait_until("the other is found", || one.knows(&[2]) && two.knows(&[1])).await;
    assert_eq!(events.recv().await.unwrap(), PeerEvent::Up(NodeId(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_on_the_cluster_port_are_turned_away() {
    let (one, two) = pair().await;

    for hello in [
        "CONNECT {}\r\nPING\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\u{16}\u{3}garbage",
        "PRI * HTTP/2.0\r\n\r\ngarbage",
    ] {
        let mut stranger = TcpStream::connect(one.address).await.unwrap();
        stranger.write_all(hello.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stranger.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{hello:?} was not closed");
        if !hello.starts_with("PRI") {
            assert_eq!(String::from_utf8_lossy(&answer), "-ERR 'attempted to connect to route port'\r\n");
        }
    }
    assert!(one.knows(&[2]) && two.knows(&[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_from_a_peer_ends_its_link_and_harms_nothing() {
    let (one, two) = pair().await;
    let mut events = one.peers.events();
    let link = two.peers.link(NodeId(1)).unwrap();

    link.push_interest(b"\xFFnot a record at all");

    assert_eq!(events.recv().await.unwrap(), PeerEvent::Down(NodeId(2)));
    wait_until("it reconnects", || one.knows(&[2]) && two.knows(&[1])).await;
}

#[test]
fn the_log_tells_of_a_refusal_once_and_of_few_at_a_time() {
    let told = super::Refusals::default();

    assert!(told.is_news("one") && !told.is_news("one") && told.is_news("two"));
    for more in 0..1000 {
        told.is_news(&more.to_string());
    }
    assert!(told.0.lock().len() <= super::REFUSALS_MAX);
}

#[test]
fn a_wildcard_address_means_where_the_node_is() {
    let seen: SocketAddr = "10.0.0.7:40000".parse().unwrap();

    assert_eq!(reachable("0.0.0.0:6222", Some(seen)).as_deref(), Some("10.0.0.7:6222"));
    assert_eq!(reachable("[::]:6222", Some(seen)).as_deref(), Some("10.0.0.7:6222"));
    assert_eq!(reachable(":6222", Some(seen)).as_deref(), Some("10.0.0.7:6222"));
    assert_eq!(reachable("n1.example:6222", Some(seen)).as_deref(), Some("n1.example:6222"));
    assert_eq!(reachable("0.0.0.0:6222", None), None);
    assert_eq!(reachable("", Some(seen)), None);
}
