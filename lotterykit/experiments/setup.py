"""`Setup`: the network and the data that the searches of a run share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lotterykit.experiments.together import digest
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.source import Augment, Loaders, Pair


@dataclass(frozen=True)
class Setup:
    """What the searches of a run share: the network (`build()`, whose weights are then overwritten), the data
    (tensors or `Loaders`), validation data for early stopping, the augmentation of training images."""

    build: Callable[[], nn.Module]
    data: Split | Loaders
    validation: Pair | None = None
    augment: Augment | None = None

    def steps_per_epoch(self, recipe: Recipe) -> int:
        """Steps an epoch takes."""
        if isinstance(self.data, Loaders):
            return len(self.data.train)  # type: ignore[arg-type]
        return -(-len(self.data.x_train) // recipe.batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of what all trainings of the run share: the network's layers, the data (of loaders only
        their numbers of batches), the validation data, whether images are augmented."""
        if isinstance(self.data, Loaders):
            loaders = (self.data.train, self.data.test, self.data.validation)
            data = str([None if of is None else len(of) for of in loaders])  # type: ignore[arg-type]
        else:
            tensors = {**self.data._asdict(), **dict(zip("xy", self.validation or (), strict=False))}
            data = digest({name: tensor.cpu() for name, tensor in tensors.items()}).hex()
        layers = re.sub(r" at 0x\w+", "", str(self.build()))  # addresses differ from run to run
        text = f"{layers} {data} {self.augment is not None}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Chain:
    """A fully connected ReLU network as `train_replicas` takes it: widths, the network's names of its
    parameters (`outer`) and theirs there (`inner`), the data with flat inputs."""

    widths: tuple[int, ...]
    outer: dict[str, str]
    inner: dict[str, str]
    data: Split
    validation: Pair | None


def chain_of(setup: Setup) -> Chain | None:
    """`setup` as a chain, None where its network is another or its data are no tensors."""
    model = setup.build()
    if isinstance(setup.data, Loaders) or setup.augment is not None or type(model) is not nn.Sequential:
        return None
    layers = list(model.named_children())
    if layers and type(layers[0][1]) is nn.Flatten:
        layers = layers[1:]
    linears, between = layers[0::2], layers[1::2]
    if (
        len(layers) % 2 == 0
        or any(type(layer) is not nn.Linear or layer.bias is None for _, layer in linears)
        or any(type(layer) is not nn.ReLU for _, layer in between)
        or next(model.parameters()).device.type != "cpu"
    ):
        return None
    kinds = ("weight", "bias")
    outer = {f"{2 * i}.{kind}": f"{name}.{kind}" for i, (name, _) in enumerate(linears) for kind in kinds}
    widths: list[Any] = [linears[0][1].in_features, *(layer.out_features for _, layer in linears)]
    held = setup.validation
    return Chain(
        tuple(widths),
        outer,
        {name: own for own, name in outer.items()},
        setup.data._replace(x_train=setup.data.x_train.flatten(1), x_test=setup.data.x_test.flatten(1)),
        None if held is None else (held[0].flatten(1), held[1]),
    )
