"""The names that specs know are those of the parts they name: a new row in one place fails here."""

from __future__ import annotations

from typing import get_args

from lotterykit.data.planted import TASKS
from lotterykit.experiments import search_spec
from lotterykit.experiments.forecast import INPUTS_OUTPUTS
from lotterykit.experiments.search_spec import SearchSpec
from lotterykit.experiments.spec import METHODS, TASK_NAMES, CellSpec
from lotterykit.nn.init import INITS
from lotterykit.planting.targets import TARGETS
from lotterykit.pruning.allocation import ALLOCATIONS
from lotterykit.pruning.scores import SCORES


def test_methods_are_the_scores():
    assert sorted(METHODS) == sorted(SCORES)


def test_searches_know_every_score_and_allocation():
    scored = [name for name in search_spec.METHODS if name in SCORES]
    assert sorted(scored) == sorted(search_spec.SCORED) == sorted(SCORES)
    annotation = SearchSpec.model_fields["allocation"].annotation
    assert sorted(get_args(get_args(annotation)[0])) == sorted(ALLOCATIONS)


def test_tasks_have_targets_and_data():
    assert sorted(TASK_NAMES) == sorted(TARGETS) == sorted(TASKS)


def test_the_forecasts_widths_are_the_tasks():
    assert {name: (task.inputs, task.outputs) for name, task in TASKS.items()} == INPUTS_OUTPUTS


def test_inits_exist():
    for name in INITS:
        assert CellSpec(task="relu", method="snip", density=0.1, init=name).init == name
    assert CellSpec.model_fields["init"].annotation.__args__ == tuple(INITS)
