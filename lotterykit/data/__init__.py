"""Data sets: the planted tasks."""

from lotterykit.data.planted import TASKS, Task, circle, helix, relu

__all__ = ["TASKS", "Task", "circle", "helix", "relu"]
