"""The papers' recipes by name: network, optimizer, schedule, prune fractions. `lotterykit list recipes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from lotterykit.errors import ArgumentError, unknown_name
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


def paper_recipe(name: str) -> PaperRecipe:
    """The recipe `name` of RECIPES; raises `ArgumentError` with the nearest name where there is none."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]


_LENET = PaperRecipe(
    source="The Lottery Ticket Hypothesis, Fig. 2, G.1",
    network="lenet",
    task="mnist",
    optimizer="adam",
    lr=1.2e-3,
    batch_size=60,
    iterations=50_000,
    evaluate_every=100,
    output=0.1,
    scope="local",
)
_CONV = replace(
    _LENET,
    source="The Lottery Ticket Hypothesis, Fig. 2, H.1, H.4",
    network="conv-2",
    task="cifar-10",
    lr=3e-4,
    conv=0.1,
)
_DROPOUT = replace(_CONV, source="The Lottery Ticket Hypothesis, H.4, H.5", lr=2e-4, dropout=0.5)
_RESNET_18 = PaperRecipe(
    source="The Lottery Ticket Hypothesis, sec. 4, I.3, I.5",
    network="resnet-20",
    task="cifar-10",
    lr=0.03,
    batch_size=128,
    weight_decay=1e-4,
    iterations=30_000,
    schedule="step",
    milestones=(20_000, 25_000),
    warmup=20_000,
    augment=True,
    fc=0.0,
    output=0.0,
    projection=0.0,
)
_VGG_19 = replace(
    _RESNET_18,
    source="The Lottery Ticket Hypothesis, sec. 4, I.2, I.5",
    network="vgg-19-bn",
    lr=0.1,
    batch_size=64,
    iterations=None,
    epochs=160,
    milestones=(80, 120),
    warmup=10_000,
)
# What the paper's text leaves open is as in its published code: no validation split, fine-tuning schedules.
_SEARCH = PaperRecipe(
    source="Rare Gems, sec. 4 and 5 (Gem-Miner's search)",
    network="resnet-20-padded",
    task="cifar-10",
    lr=0.1,
    batch_size=128,
    epochs=150,
    schedule="cosine",
    init="signed_constant",
    augment=True,
    validation=0,
    trials=3,
    reinits=1,
)
_FINETUNE = replace(
    _SEARCH,
    source="Rare Gems, sec. 4 (weight training of the ticket)",
    lr=0.01,
    weight_decay=1e-4,
    schedule="step",
    milestones=(80, 120),
)
_FINETUNE_TINY = replace(_FINETUNE, task="tiny-imagenet", epochs=200, milestones=(100, 150))
# The paper searches a grid of learning rates; .1 is the largest common one. It says nothing of momentum,
# validation and augmentation.
_SANITY = PaperRecipe(
    source="Sanity Checks, sec. 3.1",
    network="resnet-20",
    task="cifar-10",
    lr=0.1,
    batch_size=64,
    weight_decay=1e-4,
    epochs=160,
    schedule="step",
    milestones=(80, 120),
    init="kaiming_normal",
    augment=True,
    validation=0,
    trials=3,
    reinits=1,
)
_IMAGENET = replace(_SANITY, task="imagenet", epochs=90, schedule="cosine", milestones=())

# ten levels of ten epochs, to density .01: a level prunes 1 - .01 ** (1 / 10) of what is left
_VGG_16 = PaperRecipe(
    source="Plant 'n' Seek, Fig. 5",
    network="vgg-16",
    task="cifar-10",
    lr=0.01,
    batch_size=128,
    epochs=10,
    warmup_epochs=5,
    init="he_scaled",
    validation=0,
    **dict.fromkeys(("conv", "fc", "output", "projection"), 1 - 0.01**0.1),
)

RECIPES: dict[str, PaperRecipe] = {
    "p4/lenet": _LENET,
    "p4/conv-2": replace(_CONV, lr=2e-4, iterations=20_000),
    "p4/conv-4": replace(_CONV, network="conv-4", iterations=25_000),
    "p4/conv-6": replace(_CONV, network="conv-6", iterations=30_000, conv=0.15),
    "p4/conv-2-dropout": replace(_DROPOUT, lr=3e-4, iterations=60_000),
    "p4/conv-4-dropout": replace(_DROPOUT, network="conv-4", iterations=75_000),
    "p4/conv-6-dropout": replace(_DROPOUT, network="conv-6", iterations=90_000, conv=0.15),
    "p4/resnet-18": _RESNET_18,
    "p4/resnet-18-low": replace(_RESNET_18, lr=0.01, warmup=0),
    "p4/vgg-19": _VGG_19,
    "p4/vgg-19-low": replace(_VGG_19, lr=0.01, warmup=0),
    "p2/resnet-20": _SEARCH,
    "p2/resnet-20-finetune": _FINETUNE,
    "p2/resnet-20-edge-popup": replace(
        _SEARCH, source="Rare Gems, Table 3", batch_size=256, weight_decay=5e-4
    ),
    "p2/mobilenet-v2": replace(_SEARCH, source="Rare Gems, Fig. 5", network="mobilenet-v2", epochs=300),
    "p2/mobilenet-v2-finetune": replace(
        _FINETUNE, source="Rare Gems, Fig. 5", network="mobilenet-v2", epochs=300, milestones=(150, 250)
    ),
    "p2/vgg-16": replace(_SEARCH, network="vgg-16-bn"),
    "p2/vgg-16-finetune": replace(_FINETUNE, network="vgg-16-bn"),
    "p2/wideresnet-28-2": replace(_SEARCH, network="wideresnet-28-2"),
    "p2/wideresnet-28-2-finetune": replace(_FINETUNE, network="wideresnet-28-2"),
    "p2/resnet-32": replace(_SEARCH, network="resnet-32-padded", task="cifar-100"),
    "p2/resnet-32-finetune": replace(_FINETUNE, network="resnet-32-padded", task="cifar-100"),
    "p2/resnet-18": replace(_SEARCH, network="resnet-18", task="tiny-imagenet", epochs=200),
    "p2/resnet-18-finetune": replace(_FINETUNE_TINY, network="resnet-18"),
    "p2/resnet-50": replace(_SEARCH, network="resnet-50", task="tiny-imagenet", epochs=200),
    "p2/resnet-50-finetune": replace(_FINETUNE_TINY, network="resnet-50"),
    "p3/resnet-20": _SANITY,
    "p3/resnet-20-cifar-100": replace(_SANITY, task="cifar-100"),
    "p3/resnet-32": replace(_SANITY, network="resnet-32-wide"),
    "p3/resnet-32-cifar-100": replace(_SANITY, network="resnet-32-wide", task="cifar-100"),
    "p3/mobilenet-v1": replace(_SANITY, network="mobilenet-v1"),
    "p3/mobilenet-v1-cifar-100": replace(_SANITY, network="mobilenet-v1", task="cifar-100"),
    "p3/resnet-18": replace(_SANITY, network="resnet-18"),
    "p3/resnet-18-cifar-100": replace(_SANITY, network="resnet-18", task="cifar-100"),
    "p3/vgg-16": replace(_SANITY, network="vgg-16-bn"),
    "p3/vgg-16-cifar-100": replace(_SANITY, network="vgg-16-bn", task="cifar-100"),
    "p3/resnet-18-imagenet": replace(_IMAGENET, network="resnet-18"),
    "p3/resnet-50-imagenet": replace(_IMAGENET, network="resnet-50"),
    "p0/vgg-16": _VGG_16,
    # Fig. 5's weak ticket: the text has no optimizer for weights but that of the planted tasks
    "p0/vgg-16-ticket": replace(
        _VGG_16, source="Plant 'n' Seek, Fig. 5, B.1", optimizer="adam", lr=1e-3, warmup_epochs=0
    ),
}
