//! The table of API errors: HTTP-like code, stable number, text. Numbers are NATS's own and never
//! change; those of Levee begin at 60001.
//!
//! A rule that refuses something calls the constructor of its row: `ApiError::wrong_last_sequence(7)`.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

/// An error as clients see it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{description} ({err_code})")]
#[serde(default)]
pub struct ApiError {
    /// Like an HTTP status.
    pub code: u16,
    /// The stable number of the error.
    pub err_code: u16,
    /// Words for people.
    pub description: String,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ErrorRow {
    /// The stable number of the error.
    pub err_code: u16,
    /// Like an HTTP status.
    pub code: u16,
    /// Words for people, with what varies in braces.
    pub description: &'static str,
}

macro_rules! api_errors {
    ($($err_code:literal $code:literal $name:ident($($argument:ident),*) $text:literal;)*) => {
        /// Every error of the API, in the order of its number.
        pub const ERRORS: &[ErrorRow] = &[
            $(ErrorRow { err_code: $err_code, code: $code, description: $text },)*
        ];

        impl ApiError {
            $(
                #[doc = concat!("`", $err_code, "`: ", $text, ".")]
                #[must_use]
                pub fn $name($($argument: impl Display),*) -> Self {
                    Self { code: $code, err_code: $err_code, description: format!($text) }
                }
            )*
        }
    };
}

api_errors! {
    10002 400 account_resources_exceeded() "resource limits exceeded for account";
    10003 400 bad_request() "bad request";
    10004 503 incomplete_results() "incomplete results";
    10005 400 no_suitable_peers(err) "{err}";
    10006 500 cluster_not_active() "JetStream not in clustered mode";
    10007 500 cluster_not_assigned() "JetStream cluster not assigned to this server";
    10008 503 not_available() "JetStream system temporarily unavailable";
    10009 500 cluster_can_not_handle_request() "JetStream cluster can not handle request";
    10010 503 cluster_required() "JetStream clustering support required";
    10011 400 tags_not_supported() "tags placement not supported for operation";
    10012 500 consumer_create_failed(err) "{err}";
    10013 400 consumer_name_in_use() "consumer name already in use";
    10014 404 consumer_not_found() "consumer not found";
    10015 400 deliver_subject_not_valid() "deliver subject not valid";
    10016 400 durable_name_not_in_subject() "consumer expected to be durable but no durable name set in subject";
    10017 400 durable_name_not_match_subject() "consumer name in subject does not match durable name in request";
    10018 400 durable_name_not_set() "consumer expected to be durable but a durable name was not set";
    10019 400 ephemeral_with_durable_in_subject() "consumer expected to be ephemeral but detected a durable name set in subject";
    10020 400 ephemeral_with_durable_name() "consumer expected to be ephemeral but a durable name was set in request";
    10021 400 external_api_prefix_overlaps(prefix, subject) "stream external api prefix {prefix} must not overlap with {subject}";
    10022 400 external_deliver_prefix_overlaps(prefix, subject) "stream external delivery prefix {prefix} overlaps with stream subject {subject}";
    10023 503 insufficient_resources() "insufficient resources";
    10024 400 external_deliver_prefix_wildcards(prefix) "stream external delivery prefix {prefix} must not contain wildcards";
    10025 400 invalid_json(err) "invalid JSON: {err}";
    10026 400 maximum_consumers_reached() "maximum consumers limit reached";
    10027 400 maximum_streams_reached() "maximum number of streams reached";
    10028 500 memory_exceeded() "insufficient memory resources available";
    10029 500 mirror_consumer_setup_failed(err) "{err}";
    10030 400 mirror_max_msg_size_too_small() "stream mirror must have max message size >= source";
    10031 400 mirror_with_sources() "stream mirrors can not also contain other sources";
    10032 400 mirror_with_start_seq_and_time() "stream mirrors can not have both start seq and start time configured";
    10033 400 mirror_with_subject_filters() "stream mirrors can not contain filtered subjects";
    10034 400 mirror_with_subjects() "stream mirrors can not contain subjects";
    10035 503 account_not_found() "account not found";
    10036 503 not_supported_in_cluster() "not currently supported in clustered mode";
    10037 404 no_message_found() "no message found";
    10038 400 not_empty_request() "expected an empty request payload";
    10039 503 not_enabled_for_account() "JetStream not enabled for account";
    10040 400 peer_not_member() "peer not a member";
    10041 500 raft_general(err) "{err}";
    10042 500 restore_subscribe_failed(subject, err) "JetStream unable to subscribe to restore snapshot {subject}: {err}";
    10043 400 sequence_not_found(seq) "sequence {seq} not found";
    10044 400 server_not_member() "server is not a member of the cluster";
    10045 500 source_consumer_setup_failed(err) "{err}";
    10046 400 source_max_msg_size_too_small() "stream source must have max message size >= target";
    10047 500 storage_exceeded() "insufficient storage resources available";
    10048 500 stream_assignment_failed(err) "{err}";
    10049 500 stream_create_failed(err) "{err}";
    10050 500 stream_delete_failed(err) "{err}";
    10051 500 stream_general(err) "{err}";
    10052 500 stream_invalid_config(err) "{err}";
    10053 500 stream_limits_exceeded(err) "{err}";
    10054 400 message_exceeds_maximum() "message size exceeds maximum allowed";
    10055 400 mirror_not_updatable() "stream mirror configuration can not be updated";
    10056 400 stream_mismatch() "stream name in subject does not match request";
    10057 500 message_delete_failed(err) "{err}";
    10058 400 stream_name_exists() "stream name already in use with a different configuration";
    10059 404 stream_not_found() "stream not found";
    10060 400 stream_not_match() "expected stream does not match";
    10061 400 replicas_not_updatable() "Replicas configuration can not be updated";
    10062 500 stream_restore_failed(err) "restore failed: {err}";
    10063 503 stream_sequence_not_match() "expected stream sequence does not match";
    10064 500 stream_snapshot_failed(err) "snapshot failed: {err}";
    10065 400 stream_subject_overlap() "subjects overlap with an existing stream";
    10066 500 template_create_failed(err) "{err}";
    10067 500 template_delete_failed(err) "{err}";
    10068 404 template_not_found() "template not found";
    10069 500 stream_update_failed(err) "{err}";
    10070 400 wrong_last_msg_id(id) "wrong last msg ID: {id}";
    10071 400 wrong_last_sequence(seq) "wrong last sequence: {seq}";
    10072 500 restore_temp_storage() "JetStream unable to open temp storage for restore";
    10073 400 template_mismatch() "template name in subject does not match request";
    10074 500 replicas_not_supported() "replicas > 1 not supported in non-clustered mode";
    10075 503 peer_remap_failed() "peer remap failed";
    10076 503 not_enabled() "JetStream not enabled";
    10077 503 stream_store_failed(err) "{err}";
    10078 400 consumer_config_required() "consumer config required";
    10079 400 deliver_subject_has_wildcards() "consumer deliver subject has wildcards";
    10080 400 push_max_waiting() "consumer in push mode can not set max waiting";
    10081 400 deliver_subject_forms_cycle() "consumer deliver subject forms a cycle";
    10082 400 max_ack_pending_without_ack_policy() "consumer requires ack policy for max ack pending";
    10083 400 idle_heartbeat_too_small() "consumer idle heartbeat needs to be >= 100ms";
    10084 400 pull_requires_ack_on_workqueue() "consumer in pull mode requires explicit ack policy on workqueue stream";
    10085 400 pull_requires_durable_name() "consumer in pull mode requires a durable name";
    10086 400 pull_with_rate_limit() "consumer in pull mode can not have rate limit set";
    10087 400 max_waiting_negative() "consumer max waiting needs to be positive";
    10088 400 heartbeat_requires_push() "consumer idle heartbeat requires a push based consumer";
    10089 400 flow_control_requires_push() "consumer flow control requires a push based consumer";
    10090 400 direct_requires_push() "consumer direct requires a push based consumer";
    10091 400 direct_requires_ephemeral() "consumer direct requires an ephemeral consumer";
    10092 400 direct_on_mapped() "consumer direct on a mapped consumer";
    10093 400 consumer_filter_not_subset() "consumer filter subject is not a valid subset of the interest subjects";
    10094 400 invalid_start_policy(err) "{err}";
    10095 400 invalid_sampling(err) "failed to parse consumer sampling configuration: {err}";
    10096 500 stream_not_valid() "stream not valid";
    10097 400 header_exceeds_maximum() "header size exceeds maximum allowed of 64k";
    10098 400 workqueue_requires_explicit_ack() "workqueue stream requires explicit ack";
    10099 400 workqueue_multiple_unfiltered() "multiple non-filtered consumers not allowed on workqueue stream";
    10100 400 workqueue_filter_not_unique() "filtered consumer not unique on workqueue stream";
    10101 400 workqueue_requires_deliver_all() "consumer must be deliver all on workqueue stream";
    10102 400 consumer_name_too_long(max) "consumer name is too long, maximum allowed is {max}";
    10103 400 bad_durable_name() "durable name can not contain '.', '*', '>'";
    10104 500 consumer_store_failed(err) "error creating store for consumer: {err}";
    10105 400 consumer_exists_and_active() "consumer already exists and is still active";
    10106 400 consumer_replacement_differs() "consumer replacement durable config not the same";
    10107 400 consumer_description_too_long(max) "consumer description is too long, maximum allowed is {max}";
    10108 400 flow_control_without_heartbeat() "consumer with flow control also needs heartbeats";
    10109 400 stream_sealed() "invalid operation on sealed stream";
    10110 500 stream_purge_failed(err) "{err}";
    10111 500 rollup_failed(err) "{err}";
    10112 400 invalid_deliver_subject() "invalid push consumer deliver subject";
    10113 400 max_bytes_required() "account requires a stream config to have max bytes set";
    10114 400 max_request_batch_negative() "consumer max request batch needs to be > 0";
    10115 400 max_request_expires_too_small() "consumer max request expires needs to be >= 1ms";
    10116 400 max_deliver_below_backoff() "max deliver is required to be > length of backoff values";
    10117 500 subject_details_exceeded() "subject details would exceed maximum allowed";
    10118 500 stream_offline() "stream is offline";
    10119 500 consumer_offline() "consumer is offline";
    10120 400 no_limits() "no JetStream default or applicable tiered limit present";
    10121 400 max_ack_pending_exceeded(limit) "consumer max ack pending exceeds system limit of {limit}";
    10122 400 stream_max_bytes_exceeded() "stream max bytes exceeds account limit max stream bytes";
    10123 400 move_and_scale() "can not move and scale a stream in a single update";
    10124 400 move_in_progress() "stream move already in progress";
    10125 400 max_request_batch_exceeded(limit) "consumer max request batch exceeds server limit of {limit}";
    10126 400 consumer_replicas_exceed_stream() "consumer config replica count exceeds parent stream";
    10127 400 consumer_name_path_separators() "Consumer name can not contain path separators";
    10128 400 stream_name_path_separators() "Stream name can not contain path separators";
    10129 400 reconfiguration_not_in_progress() "stream reconfiguration not in progress";
    10130 400 restore_name_exists() "stream name already in use, cannot restore";
    10131 400 create_filter_mismatch() "Consumer create request did not match filtered subject from create subject";
    10132 400 durable_and_name_differ() "Consumer Durable and Name have to be equal if both are provided";
    10133 400 replicas_negative() "replicas count cannot be negative";
    10134 400 consumer_replicas_not_retention() "consumer config replicas must match interest retention stream's replicas";
    10135 400 consumer_metadata_too_large(limit) "consumer metadata exceeds maximum size of {limit}";
    10136 400 duplicate_filter_subjects() "consumer cannot have both FilterSubject and FilterSubjects specified";
    10137 400 multiple_filters_in_subject() "consumer with multiple subject filters cannot use subject based API";
    10138 400 filter_subjects_overlap() "consumer subject filters cannot overlap";
    10139 400 filter_subject_empty() "consumer filter in FilterSubjects cannot be empty";
    10140 400 source_duplicate() "duplicate source configuration detected";
    10141 400 source_name_invalid() "sourced stream name is invalid";
    10142 400 mirror_name_invalid() "mirrored stream name is invalid";
    10143 400 mirror_with_first_seq() "stream mirrors can not have first sequence configured";
    10144 400 source_filter_and_transforms() "source with multiple subject transforms cannot also have a single subject filter";
    10145 400 source_transform_source(err) "source transform source: {err}";
    10146 400 source_transform(err) "source transform: {err}";
    10147 400 source_filters_overlap() "source filters can not overlap";
    10148 400 consumer_already_exists() "consumer already exists";
    10149 400 consumer_does_not_exist() "consumer does not exist";
    10150 400 mirror_filter_and_transforms() "mirror with multiple subject transforms cannot also have a single subject filter";
    10151 400 mirror_transform_source(err) "mirror transform source: {err}";
    10152 400 mirror_filters_overlap() "mirror subject filters can not overlap";
    10153 400 inactive_threshold_exceeded(limit) "consumer inactive threshold exceeds system limit of {limit}";
    10154 400 mirror_transform(err) "mirror transform: {err}";
    10155 400 stream_transform_source(err) "stream transform source: {err}";
    10156 400 stream_transform(err) "stream transform: {err}";
    10157 400 pedantic(err) "pedantic mode: {err}";
    10158 409 msg_id_in_process() "duplicate message id is in process";
    10159 400 priority_policy_without_group() "Setting PriorityPolicy requires at least one PriorityGroup to be set";
    10160 400 priority_group_unknown() "Provided priority group does not exist for this consumer";
    10161 400 priority_group_empty() "Group name cannot be an empty string";
    10162 400 priority_group_invalid() "Valid priority group name must match A-Z, a-z, 0-9, -_/=)+ and may not exceed 16 characters";
    10163 503 subject_sequence_unavailable() "expected last sequence per subject temporarily unavailable";
    10164 400 wrong_last_sequence_constant() "wrong last sequence";
    10165 400 ttl_invalid() "invalid per-message TTL";
    10166 400 ttl_disabled() "per-message TTL is disabled";
    10167 429 too_many_requests() "too many requests";
    10168 400 counter_disabled() "message counters is disabled";
    10169 400 counter_increment_missing() "message counter increment is missing";
    10170 400 counter_has_payload() "message counter has payload";
    10171 400 counter_increment_invalid() "message counter increment is invalid";
    10172 400 counter_broken() "message counter is broken";
    10173 400 mirror_with_counters() "stream mirrors can not also calculate counters";
    10174 400 atomic_disabled() "atomic publish is disabled";
    10175 400 atomic_sequence_missing() "atomic publish sequence is missing";
    10176 400 atomic_incomplete() "atomic publish batch is incomplete";
    10177 400 atomic_unsupported_header(header) "atomic publish unsupported header used: {header}";
    10178 400 priority_with_push() "priority groups can not be used with push consumers";
    10179 400 atomic_id_invalid() "atomic publish batch ID is invalid";
    10180 412 min_last_sequence() "min last sequence";
    10181 400 ack_policy_invalid() "consumer ack policy invalid";
    10182 400 replay_policy_invalid() "consumer replay policy invalid";
    10183 400 ack_wait_negative() "consumer ack wait needs to be positive";
    10184 400 backoff_negative() "consumer backoff needs to be positive";
    10185 412 api_level_required() "JetStream minimum api level required";
    10186 400 mirror_with_schedules() "stream mirrors can not also schedule messages";
    10187 400 source_with_schedules() "stream source can not also schedule messages";
    10188 400 schedules_disabled() "message schedules is disabled";
    10189 400 schedule_pattern_invalid() "message schedules pattern is invalid";
    10190 400 schedule_target_invalid() "message schedules target is invalid";
    10191 400 schedule_ttl_invalid() "message schedules invalid per-message TTL";
    10192 400 schedule_rollup_invalid() "message schedules invalid rollup";
    10193 400 expected_subject_without_sequence() "missing sequence for expected last sequence per subject";
    10194 500 stream_offline_because(err) "stream is offline: {err}";
    10195 500 consumer_offline_because(err) "consumer is offline: {err}";
    10196 400 priority_group_without_policy() "consumer can not have priority groups when policy is none";
    10197 400 priority_timeout_without_policy() "PinnedTTL cannot be set when PriorityPolicy is none";
    10198 400 mirror_with_atomic() "stream mirrors can not also use atomic publishing";
    10199 400 atomic_too_large(size) "atomic publish batch is too large: {size}";
    10200 400 atomic_commit_invalid() "atomic publish batch commit is invalid";
    10201 400 atomic_duplicate_msg_id() "atomic publish batch contains duplicate message id";
    10202 400 member_change_in_progress() "cluster member change is in progress";
    10203 400 schedule_source_invalid() "message schedules source is invalid";
    10204 400 invalid_reset(err) "invalid reset: {err}";
    10205 400 batch_disabled() "batch publish is disabled";
    10206 400 batch_pattern_invalid() "batch publish pattern is invalid";
    10207 400 batch_id_invalid() "batch publish ID is invalid";
    10208 400 batch_id_unknown() "batch publish ID unknown";
    10209 400 mirror_with_batch() "stream mirrors can not also use batch publishing";
    10210 429 atomic_too_many_inflight() "atomic publish too many inflight";
    10211 429 batch_too_many_inflight() "batch publish too many inflight";
    10212 400 scheduler_invalid() "message schedules invalid scheduler";
    10213 400 mirror_consumer_invalid() "stream mirror consumer config is invalid";
    10214 400 mirror_consumer_requires_flow_control() "stream mirror consumer requires flow control ack policy";
    10215 400 source_consumer_invalid() "stream source consumer config is invalid";
    10216 400 source_consumer_duplicate() "duplicate stream source consumer detected";
    10217 400 source_consumer_requires_flow_control() "stream source consumer requires flow control ack policy";
    10218 400 flow_control_ack_requires_push() "flow control ack policy requires a push based consumer";
    10219 400 flow_control_ack_requires_flow_control() "flow control ack policy requires flow control";
    10220 400 flow_control_ack_requires_max_ack_pending() "flow control ack policy requires max ack pending";
    10221 400 flow_control_ack_requires_no_ack_wait() "flow control ack policy requires unset ack wait";
    10222 400 flow_control_ack_requires_no_max_deliver() "flow control ack policy requires unset max deliver";
    10223 400 schedule_time_zone_invalid() "message schedules time zone is invalid";
    10224 400 rescue_not_applied(err) "JetStream system rescue not applied: {err}";
    10225 400 stream_identity_mismatch(msg) "consumer's stream identity does not match: {msg}";
    10226 400 reconfiguration_in_progress() "stream reconfiguration already in progress";
    10227 400 stream_source_header_not_allowed() "message stream source header is not allowed";
    60001 400 consumer_extension_invalid(err) "{err}";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_ascending() {
        assert!(ERRORS.windows(2).all(|pair| pair[0].err_code < pair[1].err_code));
        assert_eq!(ERRORS.len(), 227);
    }

    #[test]
    fn what_varies_is_filled_in() {
        let error = ApiError::wrong_last_sequence(3);

        assert_eq!((error.code, error.err_code), (400, 10071));
        assert_eq!(error.description, "wrong last sequence: 3");
        assert_eq!(
            serde_json::to_string(&ApiError::stream_not_found()).unwrap(),
            r#"{"code":404,"err_code":10059,"description":"stream not found"}"#
        );
    }
}
