"""Data sets: the planted tasks, and images."""

from lotterykit.data.augment import flip_and_crop
from lotterykit.data.images import DATASETS, Images, find, load
from lotterykit.data.planted import TASKS, Task, circle, helix, relu
from lotterykit.data.stack import tensors

__all__ = [
    "DATASETS",
    "TASKS",
    "Images",
    "Task",
    "circle",
    "find",
    "flip_and_crop",
    "helix",
    "load",
    "relu",
    "tensors",
]
