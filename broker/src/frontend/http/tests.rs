use serde_json::Value;

use super::*;

struct Fixed;

impl MonitoringSource for Fixed {
    fn server(&self) -> ServerFacts {
        ServerFacts {
            id: "NABC".to_owned(),
            name: "n1".to_owned(),
            config: Arc::new(Config::levee_defaults()),
            listen: Listen { host: "127.0.0.1".to_owned(), port: 4222 },
            http: Some(Listen { host: "127.0.0.1".to_owned(), port: 8222 }),
            cluster: None,
            connect_urls: Vec::new(),
            start: Timestamp(1_700_000_000_000_000_000),
            now: Timestamp(1_700_000_061_000_000_000),
        }
    }

    fn traffic(&self) -> TrafficFacts {
        TrafficFacts { in_msgs: 7, total_connections: 2, ..TrafficFacts::default() }
    }

    fn closed_connections(&self) -> Vec<ConnectionFacts> {
        let mut closed = self.connections();
        closed.truncate(1);
        closed[0].cid = 3;
        closed[0].stop = Some((Timestamp(1_700_000_030_000_000_000), "Client Closed"));
        closed
    }

    fn connections(&self) -> Vec<ConnectionFacts> {
        [(2, 10), (1, 20)]
            .map(|(cid, out_msgs)| ConnectionFacts {
                cid,
                ip: "127.0.0.1".to_owned(),
                port: 5000,
                start: Timestamp(1_700_000_000_000_000_000),
                last_activity: Timestamp(1_700_000_060_000_000_000),
                stop: None,
                stalls: 0,
                rtt: Some(Duration::from_micros(150)),
                pending_bytes: 0,
                in_msgs: 1,
                out_msgs,
                in_bytes: 2,
                out_bytes: 3,
                subscriptions: 1,
                name: String::new(),
                lang: "rust".to_owned(),
                version: "1".to_owned(),
                user: "ann".to_owned(),
                account: "$G".to_owned(),
            })
            .to_vec()
    }

    fn routes(&self) -> Vec<RouteFacts> {
        Vec::new()
    }

    fn subscriptions(&self) -> Vec<SubscriptionFacts> {
        [("a.*", ""), ("b", "q")]
            .map(|(subject, queue)| SubscriptionFacts {
                account: "$G".to_owned(),
                subject: subject.to_owned(),
                queue: queue.to_owned(),
                sid: "1".to_owned(),
                msgs: 0,
                max: 0,
                cid: 1,
            })
            .to_vec()
    }

    fn jetstream(&self) -> Option<JetStreamFacts> {
        let stream = StreamFacts {
            account: "$G".to_owned(),
            name: "ORDERS".to_owned(),
            messages: 3,
            bytes: 90,
            leading: true,
            config: json!({ "storage": "file" }),
            consumers: vec![json!({ "name": "c", "config": {} })],
            ..StreamFacts::default()
        };
        Some(JetStreamFacts { storage: 90, streams: vec![stream], ..JetStreamFacts::default() })
    }

    fn health(&self, question: &HealthQuestion) -> Vec<HealthProblem> {
        if question.only_enabled {
            return Vec::new();
        }
        let error = "JetStream has not established contact with a meta leader".to_owned();
        vec![HealthProblem { kind: "JETSTREAM", account: None, stream: None, error }]
    }

    fn metrics(&self) -> String {
        "levee_up 1\n".to_owned()
    }
}

/// A request over a real socket: status line, headers, body.
async fn ask(path: &str) -> (u16, String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = crate::runtime::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = serve(listener, Arc::new(Fixed), async {
        stopped.await.ok();
    });
    let client = async {
        let mut stream = crate::runtime::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        drop(stop);
        answer
    };
    let (served, answer) = tokio::join!(server, client);
    served.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

async fn document(path: &str) -> Value {
    let (status, head, body) = ask(path).await;
    assert_eq!(status, 200, "{body}");
    assert!(
        head.contains("content-type: application/json") && head.contains("access-control-allow-origin: *")
    );
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn varz_has_the_field_names_of_nats_server_and_says_what_we_are() {
    let varz = document("/varz").await;

    assert_eq!(varz["server_id"], "NABC");
    assert_eq!(varz["version"], "2.15.1");
    assert_eq!(varz["levee"], crate::config::LEVEE_VERSION);
    assert_eq!(varz["uptime"], "1m1s");
    assert_eq!(varz["in_msgs"], 7);
    assert_eq!(varz["connections"], 2);
    assert_eq!(varz["ping_interval"], 120_000_000_000_u64);
    assert_eq!(varz["jetstream"]["stats"]["storage"], 90);
    assert_eq!(varz["jetstream"]["config"]["store_dir"], "levee-data/jetstream");
    assert_eq!(varz["http_req_stats"]["/varz"], 1);
    assert!(varz["mem"].as_u64().unwrap() > 0);
    assert!(varz.get("go").is_none(), "no Go here");
}

#[tokio::test]
async fn connz_sorts_pages_and_shows_credentials_only_when_asked() {
    let plain = document("/connz").await;
    assert_eq!(plain["connections"][0]["cid"], 1);
    assert_eq!(plain["connections"][0]["rtt"], "150\u{b5}s");
    assert_eq!(plain["connections"][0]["idle"], "1s");
    assert!(plain["connections"][0].get("account").is_none());

    let page = document("/connz?sort=msgs_to&limit=1&offset=1&auth=true").await;
    assert_eq!(page["num_connections"], 1);
    assert_eq!(page["total"], 2);
    assert_eq!(page["connections"][0]["cid"], 2);
    assert_eq!(page["connections"][0]["authorized_user"], "ann");

    let subs = document("/connz?cid=1&subs=1").await;
    assert_eq!(subs["connections"][0]["subscriptions_list"], json!(["a.*", "b"]));
    let subs = document("/connz?cid=1&subs=detail").await;
    assert_eq!(subs["connections"][0]["subscriptions_list_detail"][1]["qgroup"], "q");
}

#[tokio::test]
async fn connz_shows_why_connections_ended() {
    let closed = document("/connz?state=closed&sort=reason").await;
    assert_eq!(closed["total"], 1);
    assert_eq!(closed["connections"][0]["reason"], "Client Closed");
    assert_eq!(closed["connections"][0]["uptime"], "30s");

    assert_eq!(document("/connz?state=all").await["total"], 3);
    assert_eq!(document("/connz?cid=3").await["connections"][0]["cid"], 3);
    assert_eq!(ask("/connz?sort=stop").await.2, "sort by stop only valid on closed connections");
}

#[tokio::test]
async fn bad_parameters_are_a_400_with_a_text() {
    for path in
        ["/connz?auth=maybe", "/connz?sort=color", "/connz?limit=x", "/subsz?test=a.*", "/jsz?config=2"]
    {
        let (status, _, body) = ask(path).await;
        assert_eq!(status, 400, "{path}");
        assert!(!body.is_empty());
    }
    assert_eq!(ask("/nothing").await.0, 404);
}

#[tokio::test]
async fn subsz_lists_and_tests_subjects() {
    assert_eq!(document("/subsz").await["num_subscriptions"], 2);
    assert_eq!(document("/subsz?test=a.x").await["total"], 0, "nothing is listed unasked");
    let matching = document("/subscriptionsz?test=a.x&subs=1").await;
    assert_eq!(matching["total"], 1);
    assert_eq!(matching["subscriptions_list"][0]["subject"], "a.*");
}

#[tokio::test]
async fn jsz_counts_and_details_on_request() {
    let plain = document("/jsz").await;
    assert_eq!(
        (&plain["streams"], &plain["messages"], &plain["consumers"]),
        (&json!(1), &json!(3), &json!(1))
    );
    assert!(plain.get("account_details").is_none());

    let detail = document("/jsz?consumers=true").await;
    let stream = &detail["account_details"][0]["stream_detail"][0];
    assert_eq!(stream["name"], "ORDERS");
    assert_eq!(stream["consumer_detail"][0], json!({ "name": "c" }));
}

#[tokio::test]
async fn healthz_is_a_503_with_the_first_problem_or_all() {
    assert_eq!(document("/healthz?js-enabled-only=true").await, json!({ "status": "ok" }));

    let (status, _, body) = ask("/healthz").await;
    assert_eq!(status, 503);
    assert!(body.contains("\"error\": \"JetStream has not established contact with a meta leader\""));
    let (_, _, body) = ask("/healthz?details=1").await;
    assert!(body.contains("\"type\": \"JETSTREAM\""));
}

#[tokio::test]
async fn the_index_metrics_and_callbacks_are_served() {
    assert!(ask("/").await.2.contains("<a href=\"/varz\">"));
    assert_eq!(ask("/metrics").await.2, "levee_up 1\n");
    assert!(ask("/routez?callback=show").await.2.starts_with("show({"));
    assert!(ask("/routez?callback=alert(1)//").await.2.starts_with('{'));
}

#[test]
fn uptimes_leave_out_what_is_zero_at_the_front() {
    let check =
        |seconds: i64, text: &str| assert_eq!(uptime(Timestamp(0), Timestamp(seconds * 1_000_000_000)), text);
    check(0, "0s");
    check(1180, "19m40s");
    check(90_061, "1d1h1m1s");
    check(366 * 86400, "1y1d0h0m0s");
}
