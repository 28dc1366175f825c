"""What Headrace promises, each promise with the tests that prove it: README.md shows them, a test finds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guarantee:
    """A promise, and the tests that prove it: `<path below tests>::<test>` or `…::<class>::<test>`."""

    promise: str
    tests: tuple[str, ...]


GUARANTEES = (
    Guarantee(
        "Live and batch give the same rows, bit for bit, from JSON lines, CSV and Parquet",
        (
            "test_batch_inputs.py::test_batch_equals_live",
            "test_batch_inputs.py::test_all_formats_give_the_same_rows",
            "test_demo.py::TestDemo::test_as_a_stranger_runs_it",
        ),
    ),
    Guarantee(
        "Batch sizes, workers, processes, restarts, shards and interleaved partitions leave no trace in the rows",
        (
            "test_bit_identity.py::test_every_way_of_running",
            "test_bit_identity.py::test_partitions_that_grow_while_they_are_followed",
            "test_recovery.py::test_rescaled_from_4_to_1_to_3_workers",
            "test_windows.py::test_any_cut_and_any_restart_gives_the_same_bits",
            "test_windows.py::test_any_interleaving_of_partitions_gives_the_same_bits",
            "test_windows.py::test_shards_together_are_one",
        ),
    ),
    Guarantee(
        "Every event is used, a duplicate, a conflict, late or a dead letter: one of them, and the counts add up",
        ("test_bad_input.py::test_neighbours_of_bad_messages_are_used", "test_cli.py::test_json_of_a_run"),
    ),
    Guarantee(
        "Each row is visible exactly once, whatever is killed and when",
        (
            "crash/test_kills.py::test_killed_at_named_points",
            "crash/test_kills.py::test_killed_at_random_moments",
            "test_recovery.py::test_two_crashes",
            "test_offline_crash.py::test_a_sink_killed_at_every_step_writes_each_row_once",
            "contracts/test_writers.py::test_offline_rows_are_visible_once",
            "contracts/test_writers.py::test_messages_are_in_the_log_once_and_in_order",
            "test_batch_inputs.py::test_a_killed_backfill_leaves_nothing",
        ),
    ),
    Guarantee(
        "Under `drop` a row that is out never changes through what comes later, and Feast gives no value from"
        " the future",
        (
            "test_corrections.py::test_events_dropped_leave_the_rows_of_the_others",
            "test_windows.py::test_more_input_never_changes_rows_that_are_out",
            "test_feature_repo.py::test_history_holds_no_value_from_the_future",
            "test_feature_repo.py::test_history_equals_a_plain_search",
        ),
    ),
    Guarantee(
        "Statistics are those of exact sums within 1e-9, also with 1e9 added to every value",
        ("test_windows.py::test_statistics_equal_the_oracle",),
    ),
    Guarantee(
        "What is served online is the newest row, and never goes back",
        (
            "contracts/test_features.py::test_the_newest_of_all_is_served",
            "contracts/test_features.py::test_nothing_goes_back_after_a_restart",
            "contracts/test_online_writer.py::test_the_newest_row_is_served_and_never_goes_back",
            "test_feast_features.py::test_a_stopped_redis_is_waited_for",
        ),
    ),
    Guarantee(
        "A bad event never stops the flow and is never lost: its bytes, place and reason are kept",
        (
            "test_bad_input.py::test_bad_message_becomes_a_dead_letter",
            "test_bad_input.py::test_one_broken_event_does_not_slow_its_batch",
            "contracts/test_deadletters.py::test_a_killed_writer_loses_no_letter_that_it_reported",
        ),
    ),
    Guarantee(
        "What does not belong together is refused, nothing touched: another flow's recovery folder, a log that shrank",
        (
            "test_cli.py::test_a_recovery_folder_of_another_flow_is_refused",
            "test_recovery.py::test_a_folder_that_does_not_fit",
            "test_bad_input.py::test_partition_that_shrinks_stops_the_flow",
        ),
    ),
    Guarantee(
        "SIGTERM and Ctrl-C stop cleanly: the next run replays nothing",
        ("test_recovery.py::test_stopping_replays_nothing",),
    ),
    Guarantee(
        "One slow worker does not starve the others",
        ("test_epoch_sync.py::test_thirty_epochs_with_one_slow_worker",),
    ),
    Guarantee(
        "A full disk loses nothing and leaves nothing half written",
        (
            "test_offline_parquet.py::test_a_full_disk_stops_without_a_trace",
            "test_batch_inputs.py::test_a_full_disk_leaves_nothing",
        ),
    ),
    Guarantee(
        "The history is plain hive-partitioned Parquet, and stays so while small files are merged",
        (
            "test_offline_parquet.py::test_pyarrow_reads_the_files",
            "test_offline_parquet.py::test_duckdb_reads_the_files",
            "test_offline_parquet.py::test_polars_reads_the_files",
            "test_offline_crash.py::test_a_compaction_killed_at_every_step_leaves_old_or_new",
        ),
    ),
    Guarantee(
        "Documents: an unchanged one is not read, and no text is embedded twice, whatever moves or is cut anew",
        (
            "test_document_flow.py::test_an_edit_of_one_of_many_costs_one",
            "test_document_flow.py::test_a_rename_embeds_nothing_wherever_its_vectors_must_go",
            "test_document_flow.py::test_other_sizes_of_chunks_embed_only_the_chunks_that_are_new",
            "test_document_index.py::test_a_text_is_embedded_once_wherever_it_stands",
        ),
    ),
    Guarantee(
        "Documents: source, ledger, metadata and vectors agree after any crash, and `verify` finds whatever does not",
        (
            "crash/test_document_kills.py::test_killed_at_named_points",
            "crash/test_document_kills.py::test_killed_at_random_moments",
            "test_document_index.py::test_any_changes_in_any_batches_leave_what_they_say",
            "test_document_check.py::test_a_difference_is_named_and_mended",
        ),
    ),
    Guarantee(
        "Documents: a search sees each one as it was or as it is; a new model answers only when it is complete",
        (
            "test_document_flow.py::test_a_reader_during_commits_sees_the_old_or_the_new_version",
            "test_document_flow.py::test_another_model_answers_only_once_its_space_is_complete",
        ),
    ),
    Guarantee(
        "Documents: a hostile one is a dead letter and harms nothing else; a listing that fails deletes nothing",
        (
            "test_document_trouble.py::test_hostile_pdfs_among_good_documents",
            "test_extract.py::TestExtraction::test_hostile_pdfs_harm_nothing_else",
            "test_document_trouble.py::test_a_listing_that_fails_half_way_deletes_nothing",
            "test_document_trouble.py::test_a_mass_delete_needs_to_be_allowed",
        ),
    ),
    Guarantee(
        "Documents: what is personal is replaced before anything is kept, logged or listed",
        (
            "test_document_trouble.py::test_nothing_personal_is_kept_anywhere",
            "test_redact.py::test_precision_and_recall_on_the_labelled_set",
        ),
    ),
    Guarantee(
        "Feast's views are those of the flow, whatever the settings",
        ("test_feature_repo.py::test_views_are_those_of_the_flow",),
    ),
    Guarantee(
        "Logs and metrics tell of every event and never hold a payload",
        (
            "test_observability.py::test_metrics_on_the_engines_own_endpoint",
            "test_observability.py::test_logs_lead_to_an_event_and_never_show_it",
        ),
    ),
    Guarantee(
        "It starts with nothing, and what this page tells to type works",
        ("test_readme.py::test_the_minute_with_your_own_data_works",),
    ),
    Guarantee(
        "A signal means the same bare, in either mode of CloudEvents and as a row of an Arrow message, to the bit",
        (
            "test_arrow_messages.py::test_a_row_means_what_it_means_as_json",
            "test_cloudevents.py::test_what_the_sdk_writes_is_read",
            "test_kafka_formats.py::test_arrow_messages_give_the_rows_of_json_lines",
        ),
    ),
    Guarantee(
        "No bytes do harm: a damaged message is a dead letter and its neighbours are used",
        ("test_arrow_messages.py::test_damaged_bytes_do_no_harm", "test_arrow_messages.py::test_bytes_around_a_stream"),
    ),
    Guarantee(
        "Over Kafka the rows are those of files, whatever partitions, workers and processes, and whoever is killed",
        ("test_kafka_flow.py::test_every_way_of_running", "test_kafka_flow.py::test_killed_again_and_again"),
    ),
    Guarantee(
        "Kafka behind TLS, users and rights: who is right gets the same bits, who is wrong is told which setting,"
        " and no secret is told",
        (
            "test_kafka_security.py::test_who_is_right_gets_in",
            "test_kafka_security.py::test_who_is_wrong_is_told_so",
            "test_kafka_security.py::test_secrets_in_other_properties",
        ),
    ),
    Guarantee(
        "Rescaling, upgrades and new versions of a feature set, done as the runbooks say, lose and repeat nothing",
        (
            "test_runbooks.py::test_rescale_from_1_to_3_to_2_processes",
            "test_runbooks.py::test_upgrade",
            "test_runbooks.py::test_an_upgrade_to_another_format",
            "test_runbooks.py::test_another_version_of_a_feature_set",
            "test_runbooks.py::test_a_set_that_is_restarted_whole",
        ),
    ),
    Guarantee(
        "The doctor names what is wrong before a run meets it, changes nothing of yours, and waits for nobody for ever",
        (
            "test_doctor.py::test_all_is_well",
            "test_doctor.py::test_what_is_wrong_is_named",
            "test_doctor_kafka.py::test_bounded_when_nothing_answers",
            "test_kafka_security.py::test_rights_that_lack",
        ),
    ),
    Guarantee(
        "A message about a document counts once, whatever is killed or lost of the recovery folder; the newest of a uri"
        " wins",
        (
            "test_document_topic.py::test_killed_again_and_again",
            "test_document_topic.py::test_a_lost_recovery_folder_costs_nothing",
            "test_document_events.py::test_whatever_crashes_the_last_message_of_a_uri_wins",
        ),
    ),
    Guarantee(
        "No message makes Headrace open what INGEST_SOURCES does not cover",
        (
            "test_document_events.py::test_sources_own_their_uris",
            "test_document_messages.py::test_what_is_no_uri",
            "contracts/test_sources.py::test_what_is_looked_at_is_what_is_listed",
        ),
    ),
    Guarantee(
        "A document that came in a message outlives its message: another chunk size or model re-indexes it",
        (
            "test_document_topic.py::test_messages_that_retention_has_taken",
            "test_document_events.py::test_another_shape_without_the_messages",
        ),
    ),
    Guarantee(
        "Late events, dead letters and rows are told to Kafka exactly once: in one transaction with the writer's place,"
        " one snapshot later, when what it tells of is durable",
        (
            "test_kafka_writer.py::test_killed_between_any_two_steps",
            "test_kafka_flow.py::test_killed_while_it_writes_to_kafka",
            "test_kafka_flow.py::test_killed_again_and_again",
        ),
    ),
    Guarantee(
        "A broker that dies while it is written to loses nothing and repeats nothing",
        ("test_kafka_writer.py::test_a_broker_that_dies_while_it_is_written_to",),
    ),
    Guarantee(
        "A clock from a far future closes no window",
        ("test_kafka_results.py::test_events_from_a_far_future_close_no_window",),
    ),
    Guarantee(
        "Brokers, networks, disks and processes that fail and come back leave no trace in the rows, over Kafka",
        (
            "test_kafka_faults.py::test_a_broker_killed_while_it_is_written_to_and_read",
            "test_kafka_faults.py::test_one_process_of_two_killed_again_and_again",
            "test_kafka_faults.py::test_a_network_that",
            "test_kafka_faults.py::test_a_full_disk_under_the_recovery_folder",
            "test_kafka_topics.py::test_messages_that_retention_took_while_stopped",
        ),
    ),
    Guarantee(
        "`correct`: within the limit, the newest revisions are the rows of a run in which nothing was late, to the bit,"
        " whoever is killed, and whatever the workers and restarts",
        (
            "test_corrections.py::test_final_rows_are_those_of_a_run_in_which_nothing_is_late",
            "test_corrections.py::test_revisions_are_a_function_of_the_log_alone",
            "test_late_flow.py::test_live_gives_the_revisions_of_batch",
            "test_late_flow.py::test_two_processes_then_one_come_to_the_same_revisions",
            "test_late_flow.py::test_kills_leave_no_trace_in_any_revision",
            "test_kafka_late.py::test_rows_of_messages_correct_what_is_out",
        ),
    ),
    Guarantee(
        "`correct`: one revision of a row for a cause, none if it did not change, and each names what it supersedes;"
        " a storm is computed at once; what is no more retained is late and counted",
        (
            "test_corrections.py::test_one_late_event_changes_what_it_must_and_says_why",
            "test_corrections.py::test_final_rows_are_those_of_a_run_in_which_nothing_is_late",
            "test_corrections.py::test_sessions_that_a_late_event_joins_become_one_and_the_first_is_retracted",
            "test_corrections.py::test_a_storm_of_late_events_of_one_entity_is_corrected_at_once",
            "test_corrections.py::test_what_is_not_retained_any_more_is_late_and_counted",
        ),
    ),
    Guarantee(
        "`hold`: a late event waits, durable and once; released, it corrects; dropped, it does nothing",
        (
            "test_corrections.py::test_held_events_that_are_released_end_in_the_same_rows",
            "test_late_held.py::test_what_is_held_is_listed_released_and_applied_by_the_next_run",
            "test_late_held.py::test_a_running_flow_applies_what_is_released",
            "test_late_held.py::test_kills_around_releases_leave_no_trace",
            "test_late_held.py::test_dropped_events_stay_late_and_change_nothing",
        ),
    ),
    Guarantee(
        "Feast joins what was known at any moment, or what is known now; without revisions its answers are those of"
        " its own DuckDB store",
        (
            "test_asof_revisions.py::test_what_was_known_equals_a_plain_search",
            "test_asof_revisions.py::test_both_clocks_at_once",
            "test_asof_revisions.py::test_only_what_is_current_is_materialized",
            "test_asof.py::test_answers_are_those_of_feast",
            "test_corrections.py::test_online_gets_the_newest_row_that_is_not_retracted",
        ),
    ),
    Guarantee(
        "The archive holds every message once, as it came, with what became of it in the end, whatever is killed",
        (
            "test_archive_flow.py::test_each_message_is_archived_once_with_its_verdict",
            "test_archive_flow.py::test_late_events_that_corrected_are_used_in_the_end",
            "test_archive_flow.py::test_kills_leave_no_trace_in_the_archive",
            "test_archive_crash.py::test_a_writer_killed_at_every_step_archives_each_message_once",
            "test_archived_bus.py::test_every_message_comes_once_whatever_the_archive_lacks",
        ),
    ),
    Guarantee(
        "Digests are the same in any order and any cut; a bit that flips, a row that is lost or doubled shows",
        (
            "test_digests.py::test_order_and_cut_leave_no_trace",
            "test_digests.py::test_one_flipped_bit_of_any_value_shows",
            "test_digests.py::test_a_row_that_is_doubled_or_gone_shows",
            "test_offline_parquet.py::test_files_say_their_digests_and_compaction_keeps_the_sum",
        ),
    ),
    Guarantee(
        "`verify signals` says equal after any kill and under any policy, and names each planted defect, also online",
        (
            "test_verify_signals.py::test_a_run_is_equal",
            "test_verify_signals.py::test_equal_at_any_moment_of_a_lineage_of_kills",
            "test_verify_signals.py::test_a_planted_defect_is_found_and_named",
            "test_verify_signals.py::test_what_is_served_is_compared_with_the_newest_rows",
        ),
    ),
    Guarantee(
        "`explain` finds the events of any row, and the row computed anew from them is the stored one, to the bit",
        (
            "test_explain.py::test_a_thousand_random_rows_come_out_again",
            "test_explain.py::test_without_an_archive_the_bus_tells_the_same",
            "test_correction_picture.py::test_the_picture_of_the_page_shows_the_real_readings",
        ),
    ),
    Guarantee(
        "A new version of a feature set, backfilled beside the old one, loses and doubles nothing where history meets"
        " the live stream",
        (
            "test_set_versions.py::test_backfill_and_then_live_is_one_run",
            "test_set_versions.py::test_killed_at_any_moment_the_backfill_goes_on",
            "test_set_versions.py::test_a_gap_in_history_ends_the_backfill_with_its_place",
        ),
    ),
    Guarantee(
        "Who is forgotten is in nothing that Headrace keeps, and no replay brings it back; all others stay as they are,"
        " also if the erasure is killed",
        (
            "test_forget_entity.py::test_nothing_is_left_and_the_others_go_on",
            "test_forget_entity.py::test_a_replay_and_a_backfill_bring_nothing_back_until_it_is_lifted",
            "test_forget_entity.py::test_killed_half_way_it_is_finished_by_doing_it_again",
            "test_forget_document.py::test_no_word_is_left_and_looks_pass_it_over",
        ),
    ),
)
