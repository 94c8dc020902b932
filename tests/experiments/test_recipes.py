"""The papers' recipes: their figures, learning rates at key steps, prune fractions, and that they run."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

import lotterykit as lk
from lotterykit.errors import ArgumentError
from lotterykit.experiments.listing import network_lines, recipe_lines
from lotterykit.experiments.paper_recipe import TASKS
from lotterykit.experiments.recipes import RECIPES, paper_recipe
from lotterykit.nn.models import NETWORKS, outline
from lotterykit.training.recipe import Split
from lotterykit.training.single import train

# The Lottery Ticket Hypothesis, Fig. 2 and Appendix H.5: learning rate, iterations, rates of conv and output
ADAM = {
    "p4/lenet": ("lenet", 1.2e-3, 50_000, 0.2, 0.1, 0.0),
    "p4/conv-2": ("conv-2", 2e-4, 20_000, 0.1, 0.1, 0.0),
    "p4/conv-4": ("conv-4", 3e-4, 25_000, 0.1, 0.1, 0.0),
    "p4/conv-6": ("conv-6", 3e-4, 30_000, 0.15, 0.1, 0.0),
    "p4/conv-2-dropout": ("conv-2", 3e-4, 60_000, 0.1, 0.1, 0.5),
    "p4/conv-4-dropout": ("conv-4", 2e-4, 75_000, 0.1, 0.1, 0.5),
    "p4/conv-6-dropout": ("conv-6", 2e-4, 90_000, 0.15, 0.1, 0.5),
}


@pytest.mark.parametrize("name", list(ADAM))
def test_small_networks_of_the_lottery_ticket_hypothesis(name: str) -> None:
    network, lr, iterations, conv, output, dropout = ADAM[name]
    paper = paper_recipe(name)
    recipe = paper.training()
    assert (paper.network, paper.dropout, paper.conv, paper.output) == (network, dropout, conv, output)
    assert (recipe.optimizer, recipe.lr, recipe.batch_size, recipe.weight_decay) == ("adam", lr, 60, 0.0)
    assert (paper.fc, paper.scope, paper.init, paper.augment) == (0.2, "local", "glorot_normal", False)
    assert (paper.validation, paper.evaluate_every, paper.trials, paper.reinits) == (5_000, 100, 5, 3)
    assert paper.steps() == iterations
    per_epoch = -(-paper.images // 60)
    assert per_epoch == (917 if name == "p4/lenet" else 750)
    assert (recipe.epochs - 1) * per_epoch < iterations <= recipe.epochs * per_epoch
    assert {recipe.learning_rate(step, per_epoch) for step in (0, 1, iterations - 1)} == {lr}


@pytest.mark.parametrize(
    ("name", "lr", "warmup"), [("p4/resnet-18", 0.03, 20_000), ("p4/resnet-18-low", 0.01, 0)]
)
def test_resnet_18_of_the_lottery_ticket_hypothesis(name: str, lr: float, warmup: int) -> None:
    paper = paper_recipe(name)
    recipe = paper.training()
    assert (paper.network, paper.steps(), paper.batch_size, paper.images) == (
        "resnet-20",
        30_000,
        128,
        45_000,
    )
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (paper.augment, paper.scope, paper.conv) == (True, "global", 0.2)
    rates = [recipe.learning_rate(step, 352) for step in (0, 10_000, 19_999, 20_000, 25_000, 29_999)]
    early = [lr * min(1.0, step / warmup) if warmup else lr for step in (0, 10_000, 19_999)]
    assert rates == pytest.approx([*early, lr / 10, lr / 100, lr / 100])


@pytest.mark.parametrize(("name", "lr", "warmup"), [("p4/vgg-19", 0.1, 10_000), ("p4/vgg-19-low", 0.01, 0)])
def test_vgg_19_of_the_lottery_ticket_hypothesis(name: str, lr: float, warmup: int) -> None:
    """160 epochs; the paper's 112,480 iterations leave out each epoch's last 8 images, ours do not."""
    paper = paper_recipe(name)
    recipe = paper.training()
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (160, 64, 0.9, 1e-4)
    assert 160 * (45_000 // 64) == 112_480
    assert paper.steps() == 160 * 704
    keys = (5_000, 10_000, 80 * 704 - 1, 80 * 704, 120 * 704)
    first = lr / 2 if warmup else lr
    assert [recipe.learning_rate(step, 704) for step in keys] == pytest.approx(
        [first, lr, lr, lr / 10, lr / 100]
    )
    assert recipe.learning_rate(0, 704) == (0.0 if warmup else lr)


def test_recipes_of_rare_gems() -> None:
    search, finetune = paper_recipe("p2/resnet-20"), paper_recipe("p2/resnet-20-finetune")
    recipe = search.training()
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == ("sgd", 0.1, 0.9, 0.0)
    assert (recipe.schedule, recipe.epochs, recipe.batch_size) == ("cosine", 150, 128)
    assert search.init == "signed_constant"
    tuned = finetune.training()
    assert (tuned.lr, tuned.weight_decay, tuned.epochs) == (0.01, 1e-4, 150)
    popup = paper_recipe("p2/resnet-20-edge-popup").training()
    assert (popup.lr, popup.weight_decay, popup.batch_size, popup.epochs) == (0.1, 5e-4, 256, 150)
    assert paper_recipe("p2/mobilenet-v2").epochs == paper_recipe("p2/mobilenet-v2-finetune").epochs == 300
    fractions = set(search.prune_fractions(outline(search.network)).values())
    assert fractions == {0.2}  # Table 1: 19 levels of it leave 1.44 %
    assert round(0.8**19, 4) == 0.0144


def test_recipes_of_sanity_checks() -> None:
    for name in (n for n in RECIPES if n.startswith("p3/") and not n.endswith("imagenet")):
        recipe = paper_recipe(name).training()
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (160, 64, 1e-4)
        assert (recipe.schedule, recipe.milestones) == ("step", (80, 120))
        assert paper_recipe(name).trials == 3
    assert paper_recipe("p3/resnet-32").network == "resnet-32-wide"
    for name in ("p3/resnet-18-imagenet", "p3/resnet-50-imagenet"):
        assert (paper_recipe(name).epochs, paper_recipe(name).schedule) == (90, "cosine")


def test_recipe_of_plant_n_seek() -> None:
    """VGG-16 without batch-norm; ten levels of ten epochs end at density .01; warm-up over 5 epochs."""
    paper = paper_recipe("p0/vgg-16")
    recipe = paper.training(1_280)
    assert (paper.network, recipe.lr, recipe.batch_size, recipe.epochs) == ("vgg-16", 0.01, 128, 10)
    assert (1 - paper.conv) ** 10 == pytest.approx(0.01)
    assert recipe.warmup == 50
    assert [recipe.learning_rate(step, 10) for step in (0, 25, 50, 99)] == pytest.approx(
        [0, 0.005, 0.01, 0.01]
    )
    assert not any(isinstance(m, nn.BatchNorm2d) for m in paper.model(input=(3, 16, 16)).modules())
    weak = paper_recipe("p0/vgg-16-ticket").training(1_280)
    assert (weak.optimizer, weak.lr, weak.momentum, weak.epochs, weak.warmup) == ("adam", 1e-3, 0.0, 10, 0)


def test_prune_fractions_by_kind_of_layer() -> None:
    conv = paper_recipe("p4/conv-6").prune_fractions(outline("conv-6"))
    assert list(conv.values()) == [0.15] * 6 + [0.2, 0.2, 0.1]
    resnet = paper_recipe("p4/resnet-18").prune_fractions(outline("resnet-20"))
    never = [name for name, fraction in resnet.items() if fraction == 0]
    assert never == ["layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight", "fc.weight"]
    assert [f for f in resnet.values() if f] == [0.2] * 19
    vgg = paper_recipe("p4/vgg-19").prune_fractions(outline("vgg-19-bn"))
    assert list(vgg.values()) == [0.2] * 16 + [0.0]
    assert list(paper_recipe("p4/lenet").prune_fractions(outline("lenet")).values()) == [0.2, 0.2, 0.1]
    with pytest.raises(ArgumentError, match="no Linear or Conv layer"):
        paper_recipe("p4/lenet").prune_fractions(nn.ReLU())


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_whole(name: str) -> None:
    paper = paper_recipe(name)
    assert paper.network in NETWORKS
    assert paper.task in TASKS
    assert (paper.iterations is None) != (paper.epochs is None)
    recipe = paper.training(1_000)
    assert recipe.epochs > 0
    assert paper.steps(1_000) > 0
    assert all(0 <= share < 1 for share in (paper.conv, paper.fc, paper.output, paper.projection))
    with pytest.raises(FrozenInstanceError):
        paper.lr = 1.0  # type: ignore[misc]


def test_a_recipe_trains_its_network_on_another_task() -> None:
    """A few steps of p4/conv-2 on 8 x 8 images, to the end in the middle of an epoch."""
    paper = paper_recipe("p4/conv-2")
    model = paper.model(input=(1, 8, 8), classes=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(130, 1, 8, 8, generator=generator), torch.arange(130) % 3
    done: list[int] = []
    data = Split(x, y, x[:30], y[:30])
    result = train(model, data, paper.training(130), steps=4, on_step=done.append)
    assert done == [1, 2, 3, 4]
    assert result.steps[-1] == 4


def test_lists_and_public_name() -> None:
    assert lk.recipe("p4/lenet") is RECIPES["p4/lenet"]
    assert [line.split()[0] for line in recipe_lines()] == list(RECIPES)
    assert [line.split()[0] for line in network_lines()] == list(NETWORKS)


def test_what_is_refused() -> None:
    with pytest.raises(ArgumentError, match="did you mean 'p4/lenet'"):
        paper_recipe("p4/lenet5")
    for images in (0, 2.5, True):
        with pytest.raises(ArgumentError, match="images must be an int of at least 1"):
            paper_recipe("p3/resnet-20").training(images)
