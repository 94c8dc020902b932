"""What a `SearchSpec` names, looked up: its paper's recipe, the network, the data, how weights train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lotterykit.data.augment import flip_and_crop
from lotterykit.data.images import DATASETS, load
from lotterykit.errors import ArgumentError, unknown_name
from lotterykit.experiments.paper_recipe import PaperRecipe
from lotterykit.experiments.recipes import paper_recipe
from lotterykit.experiments.search_spec import SCORE_TRAINED, SearchSpec
from lotterykit.experiments.setup import Setup
from lotterykit.nn.models import NETWORKS
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.source import Loaders, Pair, check_split, check_validation

# The recipe of a network that names none: its paper's
OF_NETWORK = {
    "lenet": "p4/lenet", "conv-2": "p4/conv-2", "conv-4": "p4/conv-4", "conv-6": "p4/conv-6",
    "vgg-16": "p0/vgg-16-ticket", "vgg-16-bn": "p3/vgg-16", "vgg-19-bn": "p4/vgg-19",
    "vgg-19": "p4/vgg-19-low",
    "resnet-20": "p4/resnet-18", "resnet-20-padded": "p2/resnet-20-finetune", "resnet-32": "p3/resnet-32",
    "resnet-32-padded": "p2/resnet-32-finetune", "resnet-32-wide": "p3/resnet-32",
    "resnet-18": "p3/resnet-18", "resnet-50": "p2/resnet-50-finetune",
    "wideresnet-28-2": "p2/wideresnet-28-2-finetune", "mobilenet-v1": "p3/mobilenet-v1",
    "mobilenet-v2": "p2/mobilenet-v2-finetune",
}  # fmt: skip


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's state."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def seeded(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """`build` with torch's generator at the seed while it builds, and afterwards as it was: modules that
    initialise themselves as torch does depend on the seed, and on nothing else."""

    def built(seed: int) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return build(seed)

    return built


def paper_of(spec: SearchSpec, own: bool) -> PaperRecipe:
    """The recipe that a spec names or its network has; `own`: the caller builds the network."""
    if own and spec.scaled_init:
        raise ArgumentError("scaled_init is for networks that are named: build says itself how it scales")
    if not own and spec.net not in NETWORKS:
        raise unknown_name("network", spec.net, NETWORKS)
    name = spec.recipe or OF_NETWORK.get(spec.net)
    if name is None:
        raise ArgumentError(
            f"network {spec.net!r} has no recipe of its own: name one (lotterykit list recipes)"
        )
    paper = paper_recipe(name)
    if not own and paper.network.partition("-")[0] != spec.net.partition("-")[0]:
        raise ArgumentError(
            f"recipe {name!r} is for {paper.network} on {paper.task}, not for {spec.net}: one for it is "
            f"{OF_NETWORK[spec.net]!r} (lotterykit list recipes)"
        )
    return paper


def setup_of(
    spec: SearchSpec,
    paper: PaperRecipe,
    build: Callable[[int], nn.Module] | None,
    data: Split | Loaders | None,
    validation: Pair | None,
) -> Setup:
    """The network and the data, the caller's own or those that the spec names."""
    augment = None
    if data is not None:
        data = _own(data)
        check_validation(validation)
    elif validation is not None:
        raise ArgumentError("validation goes with data=: the named data sets hold back their own")
    else:
        if spec.data not in DATASETS:
            raise unknown_name("data set", spec.data, DATASETS)

        def held(examples: int) -> int:
            """The paper's number, but of a small data set no more than a sixth."""
            return min(paper.validation, examples // 6)

        images = load(spec.data, validation=held if spec.validation is None else spec.validation)
        data, validation = Split(*images.split), images.validation
        if paper.augment:
            black = images.black

            def augment(x: Tensor, seed: int, step: int) -> Tensor:
                return flip_and_crop(x, seed, step, fill=black)

    if build is not None:
        own = build
        return Setup(lambda: own(0), data, validation, augment)
    return Setup(lambda: network_of(spec, paper), data, validation, augment)


def _own(data: object) -> Split | Loaders:
    """The caller's data; raises `ArgumentError` unless they are loaders or tensors that fit each other."""
    if isinstance(data, Loaders):
        return data
    parts = tuple(data) if isinstance(data, tuple | list) else ()
    if len(parts) != 4 or not all(isinstance(part, Tensor) for part in parts):
        raise ArgumentError(
            "data must be Loaders or the four tensors x_train, y_train, x_test, y_test, "
            f"got {type(data).__name__}{f' of {len(parts)}' if parts else ''}"
        )
    return check_split(Split(*parts))


def network_of(spec: SearchSpec, paper: PaperRecipe) -> nn.Module:
    """The network that a spec names, at its init, for its data."""
    known = DATASETS.get(spec.data)
    if known is None:
        raise unknown_name("data set", spec.data, DATASETS)
    paper = replace(paper, network=spec.net, init=init_of(spec, paper))
    density = spec.density if spec.scaled_init else 1.0
    return paper.model(input=known.shape, classes=known.classes, seed=spec.seed, density=density)


def init_of(spec: SearchSpec, paper: PaperRecipe) -> str:
    """Scores choose among signed constants (Ramanujan et al. 2020; Rare Gems, sec. 4)."""
    return spec.init or ("signed_constant" if spec.method in SCORE_TRAINED else paper.init)


def training_of(spec: SearchSpec, paper: PaperRecipe, setup: Setup) -> tuple[Recipe, int]:
    """How weights train, and for how many steps."""
    if spec.batch_size is not None:
        paper = replace(paper, batch_size=spec.batch_size)
    if isinstance(setup.data, Loaders):
        images = len(setup.data.train) * paper.batch_size  # type: ignore[arg-type]
        evaluate_every = None
    else:
        images, evaluate_every = len(setup.data.x_train), paper.evaluate_every
    recipe, steps = paper.training(images), paper.steps(images)
    if spec.steps is not None:
        per_epoch = setup.steps_per_epoch(recipe)
        scale = spec.steps / steps
        unit = per_epoch if recipe.milestone_unit == "epochs" else 1
        recipe = replace(
            recipe,
            epochs=-(-spec.steps // per_epoch),
            warmup=round(recipe.warmup * scale),
            # in steps: of few epochs the milestones would round to the start
            milestones=tuple(round(m * unit * scale) for m in recipe.milestones),
            milestone_unit="steps",
        )
        steps = spec.steps
    given = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with torch.random.fork_rng([]):  # which a loader draws from
        y = setup.data.y_train if isinstance(setup.data, Split) else next(iter(setup.data.test))[1]
    loss = "mse" if y.is_floating_point() else "cross_entropy"
    return replace(recipe, loss=loss, evaluate_every=evaluate_every, **changes), steps
