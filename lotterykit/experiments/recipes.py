"""The papers' recipes by name: network, optimizer, schedule, prune fractions. `lotterykit list recipes`."""

from __future__ import annotations

from dataclasses import replace

from lotterykit.errors import unknown_name
from lotterykit.experiments.paper_recipe import PaperRecipe


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
