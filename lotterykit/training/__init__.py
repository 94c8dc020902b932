"""Training: one network of any kind (`train`), or many small ones in one program (`train_replicas`)."""

from lotterykit.training.optimizer import mask_optimizer_
from lotterykit.training.recipe import EarlyStop, Recipe, Split
from lotterykit.training.replicas import RunResult, RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.scored_module import ScoredTraining
from lotterykit.training.single import TrainResult, train
from lotterykit.training.source import Loaders

__all__ = [
    "EarlyStop",
    "Loaders",
    "Recipe",
    "RunResult",
    "RunSpec",
    "ScoreTraining",
    "ScoredTraining",
    "Split",
    "TrainResult",
    "mask_optimizer_",
    "train",
    "train_replicas",
]
