use super::*;
use crate::api::envelope::{Strictness, parse_request};
use crate::api::stream_check::validate_create;

fn stream(body: &str) -> StreamConfig {
    let mut config: StreamConfig = parse_request(body.as_bytes(), Strictness::Strict).unwrap();
    validate_create(&mut config, &ServerLimits::default(), Adjust::Silently).unwrap();
    config
}

fn create(subject: &str, body: &str, stream: &StreamConfig) -> Result<ConsumerConfig, ApiError> {
    let mut request: ConsumerCreateRequest = parse_request(body.as_bytes(), Strictness::Strict)?;
    let subject = format!("$JS.API.CONSUMER.{subject}");
    request.bind(&Endpoint::parse(&subject, None).unwrap())?;
    let adjust = Adjust::from_pedantic(request.pedantic);
    request.config.apply_defaults_and_validate(stream, &ServerLimits::default(), adjust)?;
    Ok(request.config)
}

fn check_document(subject: &str, config: &str, shown: &str) {
    let c1 = stream(r#"{"name": "C1", "subjects": ["c1.*"]}"#);
    let body = format!(r#"{{"stream_name": "C1", "config": {config}}}"#);
    let filled = create(subject, &body, &c1).unwrap();
    assert_eq!(serde_json::to_string(&filled).unwrap(), shown);
}

#[test]
fn what_is_not_set_gets_its_default() {
    check_document(
        "CREATE.C1.p1",
        r#"{"durable_name": "p1", "ack_policy": "explicit"}"#,
        r#"{"durable_name":"p1","name":"p1","deliver_policy":"all","ack_policy":"explicit","ack_wait":30000000000,"max_deliver":-1,"replay_policy":"instant","max_waiting":512,"max_ack_pending":1000,"num_replicas":0}"#,
    );
    check_document(
        "CREATE.C1",
        r#"{"ack_policy": "explicit"}"#,
        r#"{"deliver_policy":"all","ack_policy":"explicit","ack_wait":30000000000,"max_deliver":-1,"replay_policy":"instant","max_waiting":512,"max_ack_pending":1000,"inactive_threshold":5000000000,"num_replicas":0}"#,
    );
    check_document(
        "CREATE.C1.n",
        r#"{"name": "n", "max_waiting": -1, "max_batch": -1, "max_bytes": -1, "inactive_threshold": -1}"#,
        r#"{"name":"n","deliver_policy":"all","ack_policy":"none","max_deliver":-1,"replay_policy":"instant","max_waiting":512,"inactive_threshold":5000000000,"num_replicas":0}"#,
    );
    check_document(
        "DURABLE.CREATE.C1.d9",
        r#"{"durable_name": "d9"}"#,
        r#"{"durable_name":"d9","name":"d9","deliver_policy":"all","ack_policy":"none","max_deliver":-1,"replay_policy":"instant","max_waiting":512,"num_replicas":0}"#,
    );
    check_document(
        "CREATE.C1.f.c1.1",
        r#"{"name": "f", "filter_subject": "c1.1"}"#,
        r#"{"name":"f","deliver_policy":"all","ack_policy":"none","max_deliver":-1,"filter_subject":"c1.1","replay_policy":"instant","max_waiting":512,"inactive_threshold":5000000000,"num_replicas":0}"#,
    );
    check_document(
        "CREATE.C1.push",
        r#"{"durable_name": "push", "ack_policy": "none", "deliver_subject": "pd", "flow_control": true, "idle_heartbeat": 400000000}"#,
        r#"{"durable_name":"push","name":"push","deliver_policy":"all","ack_policy":"none","max_deliver":-1,"replay_policy":"instant","flow_control":true,"deliver_subject":"pd","idle_heartbeat":400000000,"num_replicas":0}"#,
    );
}

#[test]
fn refusals_have_the_numbers_and_texts_of_nats() {
    let c1 = stream(r#"{"name": "C1", "subjects": ["c1.*"]}"#);
    let check = |subject: &str, config: &str, err_code: u16, description: &str| {
        let body = format!(r#"{{"stream_name": "C1", "config": {config}}}"#);
        let error = create(subject, &body, &c1).unwrap_err();
        assert_eq!((error.err_code, error.description.as_str()), (err_code, description), "{config}");
    };
    let bad = |fields: &str, err_code: u16, description: &str| {
        check("CREATE.C1.bad", &format!(r#"{{"name": "bad", {fields}}}"#), err_code, description);
    };

    check(
        "CREATE.C1.p1",
        r#"{"durable_name": "zz"}"#,
        10017,
        "consumer name in subject does not match durable name in request",
    );
    check(
        "CREATE.C1",
        r#"{"durable_name": "x"}"#,
        10020,
        "consumer expected to be ephemeral but a durable name was set in request",
    );
    check(
        "DURABLE.CREATE.C1.d9",
        "{}",
        10018,
        "consumer expected to be durable but a durable name was not set",
    );
    check("CREATE.C2.x", "{}", 10056, "stream name in subject does not match request");
    check(
        "CREATE.C1.f2.c1.1",
        r#"{"name": "f", "filter_subject": "c1.2"}"#,
        10131,
        "Consumer create request did not match filtered subject from create subject",
    );
    check(
        "CREATE.C1.f3.c1.1",
        r#"{"name": "f3", "filter_subjects": ["c1.1"]}"#,
        10137,
        "consumer with multiple subject filters cannot use subject based API",
    );
    check(
        "CREATE.C1.b>",
        r#"{"name": "b>"}"#,
        10052,
        r"consumer name can not contain '.', '*', '>', '\', '/'",
    );
    bad(
        r#""filter_subject": "a", "filter_subjects": ["b"]"#,
        10136,
        "consumer cannot have both FilterSubject and FilterSubjects specified",
    );
    bad(r#""filter_subjects": ["c1.*", "c1.1"]"#, 10138, "consumer subject filters cannot overlap");
    bad(r#""filter_subjects": [""]"#, 10139, "consumer filter in FilterSubjects cannot be empty");
    bad(r#""filter_subject": "a..b""#, 10052, "invalid subject");
    bad(
        r#""deliver_policy": "last_per_subject""#,
        10094,
        "consumer delivery policy is deliver last per subject, but optional filter subject is not set",
    );
    bad(
        r#""deliver_policy": "by_start_sequence""#,
        10094,
        "consumer delivery policy is deliver by start sequence, but optional start sequence is not set",
    );
    bad(
        r#""opt_start_seq": 4"#,
        10094,
        "consumer delivery policy is deliver all, but optional start sequence is also set",
    );
    bad(
        r#""deliver_policy": "by_start_time""#,
        10094,
        "consumer delivery policy is deliver by start time, but optional start time is not set",
    );
    bad(
        r#""deliver_policy": "by_start_time", "opt_start_time": "2020-01-01T00:00:00Z", "opt_start_seq": 4"#,
        10094,
        "consumer delivery policy is deliver by start time, but optional start start sequence is also set",
    );
    bad(r#""idle_heartbeat": 1000000000"#, 10088, "consumer idle heartbeat requires a push based consumer");
    bad(r#""flow_control": true"#, 10089, "consumer flow control requires a push based consumer");
    bad(r#""rate_limit_bps": 5"#, 10086, "consumer in pull mode can not have rate limit set");
    bad(r#""deliver_subject": "a.*""#, 10079, "consumer deliver subject has wildcards");
    bad(r#""deliver_subject": "a..b""#, 10112, "invalid push consumer deliver subject");
    bad(r#""deliver_subject": "c1.9""#, 10081, "consumer deliver subject forms a cycle");
    bad(
        r#""deliver_subject": "z", "max_waiting": 3"#,
        10080,
        "consumer in push mode can not set max waiting",
    );
    bad(
        r#""deliver_subject": "z", "idle_heartbeat": 5"#,
        10083,
        "consumer idle heartbeat needs to be >= 100ms",
    );
    bad(
        r#""deliver_subject": "z", "flow_control": true"#,
        10108,
        "consumer with flow control also needs heartbeats",
    );
    bad(
        r#""deliver_subject": "z", "max_ack_pending": 3"#,
        10082,
        "consumer requires ack policy for max ack pending",
    );
    bad(
        r#""ack_policy": "explicit", "max_deliver": 1, "backoff": [1, 2]"#,
        10116,
        "max deliver is required to be > length of backoff values",
    );
    bad(
        r#""sample_freq": "x""#,
        10095,
        r#"failed to parse consumer sampling configuration: strconv.Atoi: parsing "x": invalid syntax"#,
    );
    bad(r#""num_replicas": 3"#, 10126, "consumer config replica count exceeds parent stream");
    bad(
        r#""priority_policy": "overflow""#,
        10159,
        "Setting PriorityPolicy requires at least one PriorityGroup to be set",
    );
    let without_policy = "consumer can not have priority groups when policy is none";
    bad(r#""priority_groups": ["a"]"#, 10196, without_policy);
    bad(r#""priority_groups": ["a"], "priority_timeout": 1"#, 10196, without_policy);
    bad(r#""deliver_subject": "z", "priority_groups": ["a"]"#, 10196, without_policy);
    bad(r#""priority_timeout": 1"#, 10197, "PinnedTTL cannot be set when PriorityPolicy is none");
    bad(
        r#""priority_policy": "overflow", "priority_groups": ["a", ""]"#,
        10161,
        "Group name cannot be an empty string",
    );
    bad(
        r#""priority_policy": "overflow", "priority_groups": ["a b"]"#,
        10162,
        "Valid priority group name must match A-Z, a-z, 0-9, -_/=)+ and may not exceed 16 characters",
    );
    bad(
        r#""deliver_subject": "z", "priority_policy": "overflow", "priority_groups": ["a"]"#,
        10178,
        "priority groups can not be used with push consumers",
    );
    bad(r#""max_expires": 5"#, 10115, "consumer max request expires needs to be >= 1ms");
    bad(r#""ack_wait": -1"#, 10183, "consumer ack wait needs to be positive");
    bad(
        r#""durable_name": "other""#,
        10017,
        "consumer name in subject does not match durable name in request",
    );
}

#[test]
fn work_queues_want_explicit_acks_from_the_start() {
    let queue = stream(r#"{"name": "WQ", "retention": "workqueue"}"#);
    let refused = |config: &str| {
        let body = format!(r#"{{"stream_name": "WQ", "config": {config}}}"#);
        create("CREATE.WQ.a", &body, &queue).unwrap_err().err_code
    };

    assert_eq!(refused(r#"{"durable_name": "a", "ack_policy": "none"}"#), 10084);
    assert_eq!(refused(r#"{"durable_name": "a", "ack_policy": "all"}"#), 10098);
    assert_eq!(refused(r#"{"durable_name": "a", "deliver_subject": "z"}"#), 10098);
    assert_eq!(refused(r#"{"durable_name": "a", "ack_policy": "explicit", "deliver_policy": "new"}"#), 10101);
}

#[test]
fn bounds_of_the_stream_are_defaults_and_limits() {
    let bounded = stream(
        r#"{"name": "B", "consumer_limits": {"inactive_threshold": 2000000000, "max_ack_pending": 7}}"#,
    );
    let create = |config: &str| {
        let body = format!(r#"{{"stream_name": "B", "config": {config}}}"#);
        create("CREATE.B.a", &body, &bounded)
    };

    let filled = create(r#"{"durable_name": "a", "ack_policy": "explicit"}"#).unwrap();
    assert_eq!((filled.max_ack_pending, filled.inactive_threshold), (7, Nanos::from_secs(2)));
    assert_eq!(create(r#"{"ack_policy": "explicit", "max_ack_pending": 8}"#).unwrap_err().err_code, 10121);
    let error = create(r#"{"inactive_threshold": 3000000000}"#).unwrap_err();
    assert_eq!(error.description, "consumer inactive threshold exceeds system limit of 2s");
}

#[test]
fn pedantic_requests_are_not_adjusted() {
    let c1 = stream(r#"{"name": "C1"}"#);
    let refused = |config: &str| {
        let body = format!(r#"{{"stream_name": "C1", "pedantic": true, "config": {config}}}"#);
        create("CREATE.C1.a", &body, &c1).unwrap_err().description
    };

    assert_eq!(refused(r#"{"max_deliver": -2}"#), "pedantic mode: max_deliver must be set to -1");
    assert_eq!(
        refused(r#"{"priority_timeout": -1}"#),
        "pedantic mode: priority_timeout must not be negative"
    );
    assert_eq!(
        refused(r#"{"ack_policy": "explicit", "ack_wait": 1, "backoff": [2, 3]}"#),
        "pedantic mode: first backoff value has to equal batch AckWait"
    );
}

#[test]
fn checking_again_changes_nothing() {
    let c1 = stream(r#"{"name": "C1"}"#);
    for config in [
        r#"{"durable_name": "a", "ack_policy": "explicit"}"#,
        r#"{"ack_policy": "all", "backoff": [5, 6]}"#,
        r#"{"deliver_subject": "z", "idle_heartbeat": 1000000000, "flow_control": true, "max_deliver": 1}"#,
        r#"{"priority_policy": "pinned_client", "priority_groups": ["g"], "ack_policy": "explicit"}"#,
        r#"{"deliver_subject": "z", "flow_control": true, "ack_policy": "flow_control", "max_ack_pending": 5}"#,
    ] {
        let once =
            create("CREATE.C1.a", &format!(r#"{{"stream_name": "C1", "config": {config}}}"#), &c1).unwrap();
        let mut twice = once.clone();
        twice.apply_defaults_and_validate(&c1, &ServerLimits::default(), Adjust::Refuse).unwrap();
        assert_eq!(once, twice, "{config}");
    }
}
