//! The JetStream API and core NATS through async-nats.
//!
//! Every claim is held against one node and against three, where its client is connected to a node that does not
//! lead the stream in question. A claim is an `async fn` that gets its [`ground::Ground`]; the list below makes two
//! tests of each.

mod acks;
mod clients;
mod consumers;
mod core;
mod dead_letters;
mod expiry;
mod features;
mod floods;
mod ground;
mod keyed;
mod kv;
mod mirrors;
mod objects;
mod ordered;
mod priority;
mod publish;
mod pull;
mod reads;
mod redrive;
mod replay;
mod resting;
mod snapshots;
mod streams;

/// Makes a test of each claim for each number of nodes.
macro_rules! claims {
    ($($area:ident { $($claim:ident),+ $(,)? })+) => {
        claims!(@on one one $($area { $($claim),+ })+);
        claims!(@on three three $($area { $($claim),+ })+);
    };
    (@on $module:ident $nodes:ident $($area:ident { $($claim:ident),+ })+) => {
        mod $module {
            $(mod $area {
                $(#[tokio::test]
                async fn $claim() -> anyhow::Result<()> {
                    let ground = crate::ground::Ground::$nodes().await?;
                    crate::$area::$claim(&ground).await
                })+
            })+
        }
    };
}

claims! {
    streams {
        a_stream_is_created_found_changed_and_deleted,
        creating_the_same_stream_again_is_fine_and_another_of_its_name_is_refused,
        limits_remove_the_oldest_or_refuse_the_newest,
        a_limit_per_subject_keeps_the_newest_of_each_subject,
        messages_grow_too_old,
        a_purge_removes_what_it_names_and_counts_it,
        a_deleted_message_is_gone_and_its_neighbors_stay,
        a_memory_stream_takes_and_gives_messages,
        subjects_of_streams_do_not_overlap,
        streams_are_listed_and_found_by_subject,
        account_info_counts_streams_and_consumers,
    }
    publish {
        acks_count_up_and_tell_the_stream,
        a_repeated_msg_id_is_acked_with_the_first_sequence_and_stored_once,
        a_msg_id_may_come_back_after_the_duplicate_window,
        a_wrong_expected_sequence_is_refused_and_stores_nothing,
        a_wrong_expected_subject_sequence_is_refused,
        a_wrong_expected_msg_id_or_stream_is_refused,
        many_publishes_in_flight_are_acked_in_order,
        a_message_above_the_size_limit_of_its_stream_is_refused,
        headers_and_empty_payloads_are_kept,
    }
    expiry {
        a_message_leaves_at_its_own_time_and_one_without_a_time_stays,
        a_time_to_live_has_to_be_allowed_and_has_to_be_one,
        a_message_that_never_expires_outlives_the_age_of_the_stream,
        a_marker_stands_for_a_subject_whose_last_message_expired,
        a_key_with_a_time_to_live_expires_and_a_watcher_sees_it,
    }
    features {
        a_counter_adds_up,
        many_clients_add_to_one_counter,
        what_is_no_increment_is_refused,
        a_batch_is_stored_when_it_is_committed,
        a_batch_that_breaks_a_rule_stores_nothing,
        a_schedule_publishes_again_and_again_until_it_is_ended,
        a_schedule_publishes_once_and_goes,
        subjects_are_rewritten_before_messages_are_stored,
        what_is_stored_is_published_again,
        what_is_published_again_is_stored_when_the_original_is_acknowledged,
        streams_that_publish_into_each_other_answer_at_once,
        bounds_for_consumers_hold_for_those_that_exist,
        a_fast_batch_is_acked_now_and_then_and_at_its_end,
        a_fast_batch_without_holes_ends_at_the_first_refusal,
        calls_of_the_api_are_audited,
    }
    mirrors {
        a_mirror_has_the_sequences_times_and_gaps_of_its_origin,
        many_messages_reach_a_mirror_in_order,
        a_mirror_waits_for_an_origin_that_is_not_there_yet,
        a_mirror_takes_a_part_and_rewrites_it,
        a_mirror_becomes_a_stream_of_its_own,
        a_mirror_answers_direct_gets_for_an_origin_that_is_gone,
        sources_are_gathered_and_say_where_they_are_from,
        sources_come_and_go_and_none_is_gathered_twice,
        a_source_that_is_created_again_is_gathered_from_its_beginning,
        a_stream_that_is_full_gathers_on_when_there_is_room,
        an_origin_keeps_messages_until_its_readers_have_them,
        counters_are_gathered,
        leaders_may_move_on_both_sides,
        a_work_queue_is_moved_through_a_consumer_made_by_hand,
        a_mirror_reads_what_its_consumer_delivers,
        a_source_wants_a_consumer_that_is_acked_by_flow_control,
        a_copy_goes_on_when_its_consumer_is_reset_or_made_again,
    }
    snapshots {
        a_stream_comes_back_from_its_archive,
        a_mirror_and_a_gathering_stream_go_on_where_their_archives_end,
        a_restore_that_is_asked_for_again_before_anything_came_goes_on,
        a_stream_comes_back_under_a_changed_configuration,
        a_bad_archive_is_refused_and_leaves_nothing_behind,
        nobody_sees_a_stream_before_it_is_restored,
        a_snapshot_keeps_to_its_window_and_says_why_it_ends,
    }
    redrive {
        a_redrive_that_is_stopped_in_the_middle_goes_on,
    }
    reads {
        messages_are_read_by_sequence_and_by_subject,
        direct_get_gives_the_same_as_the_leader,
    }
    consumers {
        consumers_are_created_listed_changed_and_deleted,
        a_consumer_of_another_kind_under_the_same_name_is_refused,
        an_ephemeral_consumer_goes_away_when_it_is_not_used,
        an_ephemeral_consumer_that_rests_is_there_when_used_and_goes_when_it_is_not,
        num_pending_is_exact_with_filters_deletes_and_deliveries,
    }
    pull {
        a_durable_consumer_goes_on_where_it_was,
        a_fetch_gives_what_is_there_and_waits_for_the_rest,
        no_wait_on_an_empty_stream_ends_at_once,
        max_bytes_bounds_a_batch,
        heartbeats_come_while_there_is_nothing,
        filters_give_only_what_they_match,
        a_filtered_work_queue_is_emptied_while_it_is_filled,
        two_clients_share_one_consumer_without_doubles,
        a_deleted_consumer_ends_its_waiting_requests,
    }
    floods {
        requests_beyond_those_that_may_wait_are_refused,
        senseless_requests_are_answered_and_hold_nobody_up,
        acks_of_what_nobody_got_change_nothing,
        a_client_that_breaks_off_while_its_request_waits_takes_no_message_along,
        a_thousand_requests_of_clients_that_are_gone_hold_nobody_up,
    }
    resting {
        messages_whose_acks_do_not_come_are_delivered_again_to_who_waits,
        the_end_of_the_last_attempt_is_told_in_time,
        a_request_that_waits_gets_what_matches_and_ends_in_time,
        a_removed_message_gives_its_place_to_the_next,
        a_pause_ends_for_who_waits,
        a_push_consumer_hears_of_subscribers_and_messages,
        heartbeats_go_on,
    }
    priority {
        a_request_with_a_bound_gets_only_what_overflows,
        a_request_may_wait_until_others_are_busy,
        a_lower_number_goes_first,
        requests_that_do_not_fit_the_policy_are_refused,
        a_client_is_pinned_until_it_is_unpinned,
        a_client_that_does_not_ask_any_more_loses_its_pin,
        a_pin_goes_with_its_policy,
        a_new_leader_pins_anew,
    }
    acks {
        explicit_acks_settle_one_message_each,
        ack_all_settles_everything_before,
        ack_none_needs_no_ack,
        an_unacked_message_is_delivered_again_with_its_attempt,
        a_nak_delivers_again_and_its_delay_is_kept,
        in_progress_keeps_a_message_from_being_delivered_again,
        a_terminated_message_is_never_delivered_again,
        max_deliver_ends_the_attempts_and_says_so,
        max_ack_pending_holds_deliveries_back,
        a_confirmed_ack_is_seen_in_the_next_info,
    }
    dead_letters {
        a_message_that_failed_for_the_last_time_is_stored_once_and_then_settled,
        a_terminated_message_leaves_a_work_queue_as_a_dead_letter,
        a_dead_letter_waits_for_its_stream_and_holds_nothing_up,
        dead_letters_are_redriven_to_where_they_came_from,
        options_that_can_not_be_kept_are_refused,
        a_nak_with_a_delay_frees_its_place,
    }
    keyed {
        workers_share_a_consumer_and_each_key_stays_in_order,
        a_message_that_waits_for_its_key_holds_no_other_up,
    }
    replay {
        replay_begins_at_a_sequence,
        replay_begins_at_a_time,
        replay_begins_with_the_last_the_new_or_the_last_of_each_subject,
    }
    ordered {
        an_ordered_pull_consumer_gives_everything_in_order,
        an_ordered_push_consumer_gives_everything_in_order_and_then_what_is_new,
        a_push_consumer_delivers_to_its_subject_and_to_one_of_its_queue_group,
    }
    kv {
        a_bucket_gets_puts_updates_and_deletes,
        create_and_update_refuse_a_wrong_revision,
        history_keys_and_purge,
        a_watcher_sees_what_is_there_and_then_what_changes,
    }
    objects {
        an_object_comes_back_as_it_was_put,
        objects_are_listed_replaced_and_deleted,
    }
    clients {
        the_command_line_makes_publishes_reads_and_replays,
        the_command_line_keeps_values_by_key,
        nats_py_publishes_consumes_watches_and_replays,
    }
    core {
        a_message_reaches_whoever_subscribes_on_any_node,
        wildcards_match_tokens,
        a_queue_group_gets_each_message_once,
        a_request_is_answered_with_headers,
        a_request_without_responders_is_told_so,
        an_unsubscription_after_a_number_of_messages_holds,
        headers_reach_the_other_side,
    }
}
