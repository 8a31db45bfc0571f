# SPDX-License-Identifier: MIT
"""Tests with many cases that take long together: `make test` runs every so many of them, the slow lane all.

The steps are primes, so that every value of each parameter of a product comes up. `tests.sampled` is for products whose
diagonals matter.
"""

from collections import Counter
from collections.abc import Iterable

import pytest

STEPS = {
    "test_alpha": {
        "test_by_rows_the_bits_are_the_same": 2,
        "test_constants_are_exact_in_every_dtype": 3,
        "test_hidden_colours_do_not_show": 3,
        "test_tiles_engines_and_axes_give_the_same_bits": 2,
    },
    "test_axes": {
        "test_equals_the_whole_image": 3,
        "test_every_loss": 3,
    },
    "test_cluster": {
        "test_images_come_from_anywhere_that_workers_reach": 2,
    },
    "test_cluster_blocks": {
        "test_each_row_of_shards_made_alone_gives_the_bytes_of_one_run": 3,
    },
    "test_device": {
        "test_models_blends_and_boundaries": 5,
    },
    "test_engines": {
        "test_blends_and_boundaries": 5,
    },
    "test_exact": {
        "test_sizes_around_every_multiple": 2,
    },
    "test_faults": {
        "test_a_callback_that_raises": 5,
        "test_a_model_that_fails_at_a_tile": 7,
        "test_an_operator_that_fails_in_a_stream": 2,
        "test_files_that_may_not_grow": 5,
    },
    "test_first_call": {
        "test_a_u_net_needs_no_option": 3,
        "test_the_phase_of_a_module_is_found": 2,
    },
    "test_global_stats": {
        "test_frozen_is_nearer_than_tiles_of_their_own": 3,
        "test_what_cannot_be_held_says_why": 3,
        "test_what_is_no_statistic_is_refused_by_name": 3,
    },
    "test_inspection": {
        "test_a_halo_one_phase_short_is_wrong": 3,
        "test_multiples_of_all_factors": 3,
        "test_the_halo_found_is_exact": 2,
        "test_what_is_known_is_found": 5,
    },
    "test_install_core": {
        "test_a_c_program_gives_the_bits_that_python_gives": 3,
    },
    "test_known": {
        "test_entries_are_checked_like_any_input": 2,
    },
    "test_layouts": {
        "test_every_order_of_axes_is_read_by_rows": 3,
    },
    "test_loading": {
        "test_checkpoints_restore_as_a_whole": 2,
    },
    "test_local_stats": {
        "test_equals_a_network_that_is_local_itself": 3,
        "test_tiles_agree_whatever_their_size": 3,
    },
    "test_published": {
        "test_estimating_leaves_them_alone": 3,
    },
    "test_resume": {
        "test_a_disk_that_fails_at_any_write": 2,
        "test_a_process_that_is_killed": 2,
        "test_a_run_goes_on_where_another_was_stopped": 2,
        "test_options": 2,
        "test_the_power_fails_at_any_write_or_sync": 2,
    },
    "test_resume_cli": {
        "test_pages_of_one_file_go_on": 2,
    },
    "test_scale": {
        "test_every_coincidence": 2,
        "test_every_loss_at_every_size": 3,
        "test_fractions_with_every_loss": 2,
    },
    "test_sinks": {
        "test_sinks": 2,
        "test_sources": 3,
    },
    "test_stream": {
        "test_networks": 5,
        "test_published_networks": 3,
    },
    "test_stream_memory": {
        "test_a_limit_cuts_the_image_into_several_streams": 2,
        "test_then_columns_are_halved": 2,
    },
    "test_stream_models": {
        "test_options_that_change_nothing": 3,
    },
    "test_stream_odd": {
        "test_changed_models_give_the_new_result": 5,
        "test_the_whole_image_to_the_last_digits": 5,
    },
    "test_stream_operators": {
        "test_convolutions": 2,
        "test_resizing": 5,
        "test_resizing_of_heights_that_do_not_divide": 3,
    },
    "test_stream_runs": {
        "test_beside_the_whole_image_and_tiles": 3,
        "test_channels_and_alpha": 5,
        "test_sizes_that_the_model_takes_by_itself": 2,
    },
    "test_stream_values": {
        "test_exact_statistics": 3,
    },
    "test_texts": {
        "test_whatever_a_model_raises_the_error_says_which_tile": 7,
        "test_whatever_a_model_raises_while_it_is_looked_at": 7,
    },
    "test_tuning": {
        "test_a_run_that_fails_while_it_tries_leaves_nothing": 2,
        "test_the_result_is_that_of_the_whole_image": 2,
    },
    "test_untouched": {
        "test_after_errors": 2,
        "test_every_network_is_left_as_it_was": 7,
        "test_modules_that_are_no_submodules": 7,
        "test_what_a_model_keeps": 3,
    },
    "test_verbs": {
        "test_interleaved_to_interleaved_crosses_pieces": 2,
    },
}


def thin(items: Iterable[pytest.Item]) -> None:
    """Marks the others as slow."""
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        file, name = item.path.stem, getattr(item, "originalname", item.name)
        step = STEPS.get(file, {}).get(name)
        if step is not None and item.get_closest_marker("slow") is None:
            if seen[file, name] % step:
                item.add_marker(pytest.mark.slow)
            seen[file, name] += 1
