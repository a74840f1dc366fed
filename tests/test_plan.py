"""What a run does after which step."""

import dataclasses

import pytest

from utils.plan import RunPlan


@pytest.fixture
def plan(tiny_config) -> RunPlan:
    """22 epochs of 5 steps, of which two slices are left over."""
    keys = {"batchsize": 4, "Nepochs": 22, "print_batch": 7, "checkpt_batch": 30, "save_steps": 40}
    return RunPlan(dataclasses.replace(tiny_config, match_histogram=True, **keys), 22)


def steps_with(plan: RunPlan, name: str, first_step: int = 0) -> list[int]:
    """The steps after which one thing is due."""
    return [step for step in range(first_step + 1, plan.total_steps + 1) if getattr(plan.due(step, first_step), name)]


def test_epochs_are_of_whole_batches(plan):
    assert (plan.epoch_steps, plan.total_steps) == (5, 110)


def test_what_is_due_comes_as_often_as_its_key_says(plan):
    assert steps_with(plan, "log") == [1, *range(7, 110, 7)]
    assert steps_with(plan, "checkpoint") == [1, 30, 60, 90, 110]
    assert steps_with(plan, "save") == [40, 80, 110]
    assert steps_with(plan, "weights") == [50, 100]
    assert steps_with(plan, "end") == [110]


def test_map_of_densities_is_fitted_before_weights_are_scored_or_kept(plan):
    assert steps_with(plan, "match") == [1, 30, 50, 60, 90, 100, 110]
    plain = dataclasses.replace(plan, config=dataclasses.replace(plan.config, match_histogram=False))
    assert steps_with(plain, "match") == []


def test_resumed_run_differs_only_in_its_first_log_line(plan):
    for name in ("checkpoint", "save", "weights", "match", "end"):
        assert steps_with(plan, name, 45) == [step for step in steps_with(plan, name) if step > 45]
    assert steps_with(plan, "log", 45) == [46, *range(49, 110, 7)]
