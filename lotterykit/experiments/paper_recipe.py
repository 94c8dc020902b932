"""`PaperRecipe`: how a paper trains a network and prunes it, and the tasks they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lotterykit.errors import ArgumentError
from lotterykit.mask import prunable_layers
from lotterykit.nn.models import network
from lotterykit.training.recipe import Recipe

# Residual shortcuts with weights: torchvision's name for them, and that of most CIFAR code
SHORTCUTS = ("downsample", "shortcut")


class Task(NamedTuple):
    """Image size (channels, height, width), number of classes, number of training images."""

    input: tuple[int, int, int]
    classes: int
    images: int


TASKS = {
    "mnist": Task((1, 28, 28), 10, 60_000),
    "cifar-10": Task((3, 32, 32), 10, 50_000),
    "cifar-100": Task((3, 32, 32), 100, 50_000),
    "tiny-imagenet": Task((3, 64, 64), 200, 100_000),
    "imagenet": Task((3, 224, 224), 1000, 1_281_167),
}


@dataclass(frozen=True)
class PaperRecipe:
    """A network, its training and its pruning, as a paper has them.

    Training lasts `iterations` steps, or `epochs`; `milestones` count in the same unit. The learning rate
    rises from 0 over `warmup` steps or `warmup_epochs`. `validation` examples are split off the training set;
    `augment` means flips and crops after padding by 4 pixels. `conv`, `fc`, `output` and `projection` are
    the shares of the remaining weights that a level prunes from convolutions, hidden fully connected
    layers, the output layer and shortcuts; `scope` says whether a level ranks weights per layer ("local")
    or together ("global"). `trials` networks are trained, each re-initialised `reinits` times as a control.
    `source`: where the paper says so.
    """

    source: str
    network: str
    task: str
    lr: float
    batch_size: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    iterations: int | None = None
    epochs: int | None = None
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    warmup: int = 0
    warmup_epochs: int = 0
    init: str = "glorot_normal"
    dropout: float = 0.0
    augment: bool = False
    validation: int = 5_000
    evaluate_every: int | None = None
    conv: float = 0.2
    fc: float = 0.2
    output: float = 0.2
    projection: float = 0.2
    scope: str = "global"
    trials: int = 5
    reinits: int = 3

    @property
    def images(self) -> int:
        """Training images that are left after the validation split."""
        return TASKS[self.task].images - self.validation

    def steps(self, images: int | None = None) -> int:
        """How many steps the training takes on `images` training images, None for the paper's."""
        if self.iterations is not None:
            return self.iterations
        return (self.epochs or 0) * self._per_epoch(images)

    def training(self, images: int | None = None) -> Recipe:
        """The recipe for `images` training images; one of `iterations` ends within its last epoch, after
        `steps(images)` steps."""
        per_epoch = self._per_epoch(images)
        adam = self.optimizer == "adam"
        return Recipe(
            "cross_entropy",
            epochs=-(-self.steps(images) // per_epoch),
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=0.0 if adam else self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            milestones=self.milestones,
            milestone_unit="epochs" if self.iterations is None else "steps",
            warmup=self.warmup + self.warmup_epochs * per_epoch,
            evaluate_every=self.evaluate_every,
        )

    def model(
        self,
        *,
        input: Sequence[int] | None = None,
        classes: int | None = None,
        seed: int = 0,
        density: float = 1.0,
    ) -> nn.Module:
        """The network with the paper's init, for the paper's task or for images and classes of another;
        `density` as in `network`."""
        task = TASKS[self.task]
        return network(
            self.network,
            input=task.input if input is None else input,
            classes=task.classes if classes is None else classes,
            init=self.init,
            seed=seed,
            dropout=self.dropout,
            density=density,
        )

    def prune_fractions(self, model: nn.Module) -> dict[str, float]:
        """Weight name -> share of its remaining weights that a level prunes, 0 for never.

        The last layer is the output; a layer inside a module named `downsample` or `shortcut` is a
        projection. Raises `ArgumentError` for a model without prunable layers.
        """
        layers = list(prunable_layers(model))
        found = {}
        for prefix, layer in layers:
            if layer is layers[-1][1]:
                fraction = self.output
            elif any(part in SHORTCUTS for part in prefix.split(".")):
                fraction = self.projection
            else:
                fraction = self.fc if isinstance(layer, nn.Linear) else self.conv
            found[f"{prefix}weight"] = fraction
        return found

    def _per_epoch(self, images: int | None) -> int:
        count = self.images if images is None else images
        if type(count) is not int or count < 1:
            raise ArgumentError(f"images must be an int of at least 1, got {images!r}")
        return -(-count // self.batch_size)
