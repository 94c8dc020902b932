"""lotterykit: sparse kernels and pruning pipelines for lottery-ticket research.

Names are handed on lazily: `import lotterykit` loads neither torch nor anything optional.

The library prints nothing. What a program might want to know goes to the logger "lotterykit", which is silent
until the program configures logging: `logging.basicConfig(level="INFO")` shows all of it.
"""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import version
from typing import Any

__version__ = version("lotterykit")

logging.getLogger("lotterykit").addHandler(logging.NullHandler())

# public name -> where it stands; an empty attribute means the module itself
_NAMES = {
    "Masks": "lotterykit.mask:Masks",
    "MaskedConv2d": "lotterykit.nn.masked:MaskedConv2d",
    "MaskedLinear": "lotterykit.nn.masked:MaskedLinear",
    "load_checkpoint_": "lotterykit.nn.checkpoints:load_checkpoint_",
    "read_masks": "lotterykit.nn.checkpoints:read_masks",
    "convert_": "lotterykit.nn.convert:convert_",
    "revert_": "lotterykit.nn.convert:revert_",
    "Pruner": "lotterykit.pruning.prune:Pruner",
    "layer_densities": "lotterykit.pruning.allocation:layer_densities",
    "level_masks": "lotterykit.pruning.levels:level_masks",
    "prune_": "lotterykit.pruning.prune:prune_",
    "scores": "lotterykit.pruning.scores:scores",
    "Planted": "lotterykit.planting.plant:Planted",
    "plant": "lotterykit.planting.plant:plant",
    "Recovery": "lotterykit.planting.recovery:Recovery",
    "recovery": "lotterykit.planting.recovery:recovery",
    "targets": "lotterykit.planting.targets:",
    "bound": "lotterykit.planting.bound:",
    "Loaders": "lotterykit.training.source:Loaders",
    "Recipe": "lotterykit.training.recipe:Recipe",
    "recipe": "lotterykit.experiments.recipes:paper_recipe",
    "RunResult": "lotterykit.training.replicas:RunResult",
    "RunSpec": "lotterykit.training.replicas:RunSpec",
    "ScoreTraining": "lotterykit.training.scored:ScoreTraining",
    "ScoredTraining": "lotterykit.training.scored_module:ScoredTraining",
    "mask_optimizer_": "lotterykit.training.optimizer:mask_optimizer_",
    "train": "lotterykit.training.single:train",
    "train_replicas": "lotterykit.training.replicas:train_replicas",
    "Sweep": "lotterykit.experiments.sweep:Sweep",
    "SearchSpec": "lotterykit.experiments.search_spec:SearchSpec",
    "Ticket": "lotterykit.experiments.ticket:Ticket",
    "control": "lotterykit.experiments.controls:control",
    "find_ticket": "lotterykit.experiments.find:find_ticket",
    "PlantBack": "lotterykit.experiments.plant_back:PlantBack",
    "plant_back": "lotterykit.experiments.plant_back:plant_back",
    "judge": "lotterykit.experiments.judge:judge",
    "verdict": "lotterykit.experiments.verdict:verdict",
    "backends": "lotterykit.ops.dispatch:backends",
    "explain": "lotterykit.ops.dispatch:explain",
    "use_backend": "lotterykit.ops.dispatch:use_backend",
    "data": "lotterykit.data:",
    "nn": "lotterykit.nn:",
    "ops": "lotterykit.ops:",
    "ArgumentError": "lotterykit.errors:ArgumentError",
    "BackendError": "lotterykit.errors:BackendError",
    "LotterykitError": "lotterykit.errors:LotterykitError",
    "StoreError": "lotterykit.errors:StoreError",
}
_EXTRAS = {"matplotlib": "plot"}  # optional package -> the extra that brings it

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'lotterykit' has no attribute {name!r}")
    module, attribute = _NAMES[name].split(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        from lotterykit.errors import LotterykitError

        raise LotterykitError(
            f"lotterykit.{name} needs {error.name}: pip install 'lotterykit[{extra}]'"
        ) from error
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
