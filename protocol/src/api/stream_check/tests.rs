use super::*;
use crate::api::envelope::{Strictness, parse_request};
use crate::api::stream_request::StreamConfigRequest;

fn validate(body: &str) -> Result<StreamConfig, ApiError> {
    let request: StreamConfigRequest = parse_request(body.as_bytes(), Strictness::Strict)?;
    let mut config = request.config;
    validate_create(&mut config, &ServerLimits::default(), Adjust::from_pedantic(request.pedantic))?;
    Ok(config)
}

#[test]
fn what_is_not_set_gets_its_default() {
    let config = validate(r#"{"name": "G1"}"#).unwrap();

    assert_eq!(config.subjects, ["G1"]);
    assert_eq!((config.max_msgs, config.max_bytes, config.max_msg_size), (-1, -1, -1));
    assert_eq!((config.max_msgs_per_subject, config.max_consumers, config.num_replicas), (-1, -1, 1));
    assert_eq!(config.duplicate_window, Nanos::from_secs(120));
}

#[test]
fn the_duplicate_window_follows_max_age_and_the_server() {
    let config = validate(r#"{"name": "G1", "max_age": 1000000000}"#).unwrap();
    assert_eq!(config.duplicate_window, Nanos::from_secs(1));

    let limits = ServerLimits { duplicate_window_max: Nanos::from_secs(5), ..ServerLimits::default() };
    let mut config = StreamConfig { name: "G1".to_owned(), ..StreamConfig::default() };
    validate_create(&mut config, &limits, Adjust::Silently).unwrap();
    assert_eq!(config.duplicate_window, Nanos::from_secs(5));
    config.duplicate_window = Nanos::from_secs(60);
    assert_eq!(
        validate_create(&mut config, &limits, Adjust::Silently).unwrap_err().description,
        "duplicates window can not be larger then server limit of 5s"
    );
}

#[test]
fn refusals_have_the_numbers_and_texts_of_nats() {
    let check = |body: &str, err_code: u16, description: &str| {
        let error = validate(body).unwrap_err();
        assert_eq!((error.err_code, error.description.as_str()), (err_code, description), "{body}");
    };
    let long_name = format!(r#"{{"name": "{}", "subjects": ["ge"]}}"#, "n".repeat(256));

    check(
        r#"{"subjects": ["ge"]}"#,
        10052,
        r"stream name is required and can not contain '.', '*', '>', '\', '/'",
    );
    check(&long_name, 10052, "stream name is too long, maximum allowed is 255");
    check(r#"{"name": "GE", "subjects": ["a.*", "a.b"]}"#, 10052, r#"subject "a.*" overlaps with "a.b""#);
    check(r#"{"name": "GE", "subjects": ["a", "a"]}"#, 10052, r#"subject "a" overlaps with "a""#);
    check(r#"{"name": "GE", "subjects": ["a..b"]}"#, 10052, "invalid subject");
    check(r#"{"name": "GE", "num_replicas": 9}"#, 10052, "maximum replicas is 5");
    check(r#"{"name": "GE", "num_replicas": -1}"#, 10133, "replicas count cannot be negative");
    check(r#"{"name": "GE", "max_age": 5}"#, 10052, "max age needs to be >= 100ms");
    check(r#"{"name": "GE", "max_age": -5}"#, 10052, "max age can not be negative");
    check(
        r#"{"name": "GE", "max_age": 1000000000, "duplicate_window": 5000000000}"#,
        10052,
        "duplicates window can not be larger then max age",
    );
    check(r#"{"name": "GE", "duplicate_window": 5}"#, 10052, "duplicates window needs to be >= 100ms");
    check(r#"{"name": "GE", "sealed": true}"#, 10052, "stream configuration for create can not be sealed");
    check(
        r#"{"name": "GE", "subjects": ["$JS.x"]}"#,
        10052,
        "subjects that overlap with jetstream api require no-ack to be true",
    );
    check(
        r#"{"name": "GE", "subjects": ["$SYS.x"]}"#,
        10052,
        "subjects that overlap with system api require no-ack to be true",
    );
    check(r#"{"name": "GE", "subjects": [">"]}"#, 10052, "capturing all subjects requires no-ack to be true");
    check(
        r#"{"name": "GE", "subjects": [">"], "no_ack": true, "num_replicas": 3}"#,
        10052,
        "capturing all subjects requires replicas of 1",
    );
    check(
        r#"{"name": "GE", "mirror": {"name": "G1"}, "subjects": ["z"]}"#,
        10034,
        "stream mirrors can not contain subjects",
    );
    check(
        r#"{"name": "GE", "mirror": {"name": "G1"}, "sources": [{"name": "G1"}]}"#,
        10031,
        "stream mirrors can not also contain other sources",
    );
    check(
        r#"{"name": "GE", "mirror_direct": true}"#,
        10052,
        "stream has no mirror but does have mirror direct",
    );
    check(
        r#"{"name": "GE", "discard_new_per_subject": true}"#,
        10052,
        "discard new per subject requires discard new policy to be set",
    );
    check(
        r#"{"name": "GE", "discard_new_per_subject": true, "discard": "new"}"#,
        10052,
        "discard new per subject requires max msgs per subject > 0",
    );
    check(
        r#"{"name": "GE", "allow_rollup_hdrs": true, "deny_purge": true}"#,
        10052,
        "roll-ups require the purge permission",
    );
    check(
        r#"{"name": "GE", "subject_delete_marker_ttl": 1000000}"#,
        10052,
        "subject delete marker TTL must be at least 1 second",
    );
    check(
        r#"{"name": "GE", "allow_msg_counter": true, "allow_msg_ttl": true}"#,
        10052,
        "counter stream cannot use message TTLs",
    );
    check(
        r#"{"name": "GE", "allow_msg_schedules": true, "discard": "new"}"#,
        10052,
        "message scheduling cannot use discard new",
    );
    check(
        r#"{"name": "GE", "persist_mode": "async", "storage": "memory"}"#,
        10052,
        "async persist mode is only supported on file storage",
    );
    check(
        r#"{"name": "GE", "subjects": ["rc.>"], "republish": {"src": ">", "dest": "rc.x.>"}}"#,
        10052,
        "stream configuration for republish destination forms a cycle",
    );
    check(
        r#"{"name": "GE", "republish": {"src": "t.>", "dest": "r"}}"#,
        10052,
        "stream configuration for republish with transform from 't.>' to 'r' not valid",
    );
    check(
        r#"{"name": "GE", "subject_transform": {"src": "t..", "dest": "r"}}"#,
        10155,
        "stream transform source: invalid subject t..",
    );
    check(
        r#"{"name": "GE", "subject_transform": {"src": "t.>", "dest": "r"}}"#,
        10156,
        "stream transform: invalid subject",
    );
    check(
        r#"{"name": "GE", "placement": {"preferred": "x"}}"#,
        10052,
        "preferred server not permitted in placement",
    );
    check(
        r#"{"name": "GE", "max_msgs": -5, "pedantic": true}"#,
        10157,
        "pedantic mode: max_msgs must be set to -1",
    );
    check(
        r#"{"name": "GE", "sources": [{"name": "G1"}, {"name": "G1"}]}"#,
        10140,
        "duplicate source configuration detected",
    );
    check(r#"{"name": "GE", "subjects": ["ss"], "sources": [{"name": "GE"}]}"#, 10052, "detected cycle");
}

#[test]
fn what_a_marker_ttl_and_schedules_imply_is_switched_on() {
    let config =
        validate(r#"{"name": "TT", "subject_delete_marker_ttl": 5000000000, "deny_purge": true}"#).unwrap();
    assert!(config.allow_msg_ttl && config.allow_rollup_hdrs && !config.deny_purge);

    assert!(validate(r#"{"name": "SC", "allow_msg_schedules": true}"#).unwrap().allow_rollup_hdrs);
}

#[test]
fn advisories_of_accounts_and_streams_may_be_captured() {
    validate(r#"{"name": "EV", "subjects": ["$JS.EVENT.ADVISORY.>", "$SYS.ACCOUNT.A.>"]}"#).unwrap();
    validate(r#"{"name": "EV", "subjects": ["$JS.>"], "no_ack": true}"#).unwrap();
}

#[test]
fn checking_again_changes_nothing() {
    for body in [
        r#"{"name": "G1"}"#,
        r#"{"name": "TT", "subject_delete_marker_ttl": 5000000000}"#,
        r#"{"name": "M", "mirror": {"name": "G1"}}"#,
        r#"{"name": "R", "republish": {"dest": "rp.>"}}"#,
    ] {
        let once = validate(body).unwrap();
        let mut twice = once.clone();
        validate_create(&mut twice, &ServerLimits::default(), Adjust::Refuse).unwrap();
        assert_eq!(once, twice, "{body}");
    }
}

#[test]
fn the_name_in_the_subject_must_be_that_in_the_body() {
    let config = StreamConfig { name: "a/b".to_owned(), ..StreamConfig::default() };

    assert_eq!(config.check_subject_name("X").unwrap_err().err_code, 10056);
    assert_eq!(config.check_subject_name("a/b").unwrap_err().err_code, 10128);
}
