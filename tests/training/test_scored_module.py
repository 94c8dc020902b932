"""`ScoredTraining` against the update rules derived by hand, and on a convolutional network."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_
from lotterykit.nn.masked import MaskedConv2d, MaskedLinear
from lotterykit.training.scored import ScoreTraining
from lotterykit.training.scored_module import ScoredTraining

EPOCHS, STEPS = 5, 6
TRAININGS = {
    "layer": ScoreTraining(density=0.3),
    "global": ScoreTraining(density=0.2, scope="global"),
    "annealed": ScoreTraining(density=0.1, anneal=True),
    "global annealed": ScoreTraining(density=0.05, anneal=True, scope="global"),
    "gradual": ScoreTraining(density=0.1, gradual_every=2, scope="global"),
    "regularised": ScoreTraining(density=0.1, gradual_every=1, scope="global", penalty=1e-2),
    "sparse norm": ScoreTraining(density=0.3, penalty=1e-2, penalty_norm=1),
    "all": ScoreTraining(density=1.0),
    "none": ScoreTraining(density=1e-6),
    "gem": ScoreTraining("gem-miner", 0.1, penalty=1e-2, freeze_every=2),
    "gem layer": ScoreTraining("gem-miner", 0.3, scope="layer", freeze_every=1),
    "gem sparse norm": ScoreTraining("gem-miner", 0.2, freeze_every=1, penalty=1e-2, penalty_norm=1),
    "gem zero": ScoreTraining("gem-miner", penalty=1e-2),
}


def share(t: ScoreTraining, epoch: int) -> float:
    """The density of an epoch, counted from 0, by the papers' formulas."""
    rho = t.density or 1.0
    if t.anneal:
        return rho ** ((epoch + 1) / EPOCHS)
    every = t.gradual_every if t.method == "edge-popup" else t.freeze_every
    return rho if every is None else rho ** ((epoch // every) / ((EPOCHS - 1) // every))


def highest(values: list[Tensor], count: float) -> list[Tensor]:
    """Masks of the highest of all values together, by sorting."""
    flat = torch.cat([v.flatten() for v in values])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(descending=True)[: round(count * len(flat))]] = True
    return [m.view(v.shape) for m, v in zip(mask.split([v.numel() for v in values]), values, strict=True)]


class ByHand:
    """Two layers, ReLU and softmax cross-entropy in float64: forward, backward and update written out."""

    def __init__(self, model: nn.Sequential, scores: list[Tensor], t: ScoreTraining, rates: tuple) -> None:
        self.w = [model[i].weight.detach().clone() for i in (0, 2)]
        self.b = [model[i].bias.detach().clone() for i in (0, 2)]
        self.s, self.t = scores, t
        self.lr, self.momentum, self.decay = rates
        self.v: list[Tensor | None] = [None, None]
        self.active = [torch.ones_like(s, dtype=torch.bool) for s in scores]
        self.epoch = 0

    def per_scope(self, values: list[Tensor]) -> list[Tensor]:
        count = share(self.t, self.epoch)
        if self.t.scope == "global":
            return highest(values, count)
        return [highest([v], count)[0] for v in values]

    def begin(self, epoch: int) -> None:
        self.epoch = epoch
        if self.t.method == "gem-miner" and self.t.density and epoch:
            ranked = [torch.where(a, s, -1.0) for s, a in zip(self.s, self.active, strict=True)]
            self.active = [a & m for a, m in zip(self.active, self.per_scope(ranked), strict=True)]
            for i, active in enumerate(self.active):
                self.s[i] = self.s[i] * active
                self.v[i] = None if self.v[i] is None else self.v[i] * active

    def masks(self) -> list[Tensor]:
        if self.t.method == "gem-miner":
            return [s >= 0.5 for s in self.s]
        return self.per_scope([s.abs() for s in self.s])

    def step(self, x: Tensor, y: Tensor) -> None:
        w1, w2 = (w * m for w, m in zip(self.w, self.masks(), strict=True))
        before = x @ w1.T + self.b[0]
        hidden = before.clamp_min(0)
        out = hidden @ w2.T + self.b[1]
        delta = (out.softmax(1) - F.one_hot(y, out.shape[1])) / len(x)
        slopes = [((delta @ w2) * (before > 0)).T @ x, delta.T @ hidden]
        for i, slope in enumerate(slopes):
            s = self.s[i]
            g = slope * self.w[i] * (s.sign() if self.t.method == "edge-popup" else 1.0)
            g = g + self.t.penalty * (2 * s if self.t.penalty_norm == 2 else s.sign())
            g = g * self.active[i] + self.decay * s
            before_step = self.v[i]
            self.v[i] = v = g if before_step is None else self.momentum * before_step + g
            s = s - self.lr * v
            self.s[i] = s.clamp(0, 1) if self.t.method == "gem-miner" else s


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        x = torch.randn(12, 7, generator=g, dtype=torch.float64)
        yield x, x[:, :4].argmax(1)


@pytest.mark.parametrize("name", TRAININGS)
def test_the_update_rules_by_hand(name: str) -> None:
    """float64, after every step of 5 epochs of 6: the same scores; the masks at every epoch's end."""
    training, rates = TRAININGS[name], (0.5, 0.9, 5e-4)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 19), nn.ReLU(), nn.Linear(19, 4)).double()
    plain = copy.deepcopy(model)
    run = ScoredTraining(model, training, EPOCHS, seed=11)
    alone = ByHand(plain, list(run.scores.values()), training, rates)
    optimizer = run.attach_(torch.optim.SGD(run.parameters, rates[0], rates[1], weight_decay=rates[2]))
    for epoch in range(EPOCHS):
        run.begin(epoch)
        alone.begin(epoch)
        for x, y in batches(epoch):
            optimizer.zero_grad()
            with run.ranked():
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
            alone.step(x, y)
            for got, wanted in zip(run.scores.values(), alone.s, strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        for got, wanted in zip(run.masks().values(), alone.masks(), strict=True):
            assert torch.equal(got, wanted)
    wanted = alone.active if training.method == "gem-miner" and training.density else alone.masks()
    masks = run.finish()
    for mask, expected, i in zip(masks.values(), wanted, (0, 2), strict=True):
        assert torch.equal(mask, expected)
        assert torch.equal(model[i].weight_mask, expected)
        assert type(model[i]) is MaskedLinear
        assert torch.equal(model[i].weight, plain[i].weight)
        assert torch.equal(model[i].bias, plain[i].bias)


class Residual(nn.Module):
    """Convolutions, batch-norm, a residual block with a projection, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.two, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.short = nn.Conv2d(8, 16, 1, 2, bias=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        h = self.norm2(self.two(self.norm1(self.one(x)).relu()))
        return self.head((h + self.short(x)).relu().mean((2, 3)))


def images(seed: int, n: int = 90) -> tuple[Tensor, Tensor]:
    """Bars that lie, stand or are not there, in noise."""
    g = torch.Generator().manual_seed(seed)
    x, y = 0.3 * torch.randn(n, 1, 8, 8, generator=g), torch.arange(n) % 3
    for i in range(n):
        at = int(torch.randint(8, (1,), generator=g))
        if y[i] == 0:
            x[i, 0, at] += 1.5
        elif y[i] == 1:
            x[i, 0, :, at] += 1.5
    return x, y


def train(run: ScoredTraining, optimizer: torch.optim.Optimizer, epochs: range, seed: int = 0) -> list[float]:
    """Epochs of 6 steps on `images`; the loss of each."""
    losses = []
    for epoch in epochs:
        run.begin(epoch)
        run.model.train()
        x, y = images(100 * seed + epoch)
        total = 0.0
        for part, label in zip(x.split(15), y.split(15), strict=True):
            optimizer.zero_grad()
            with run.ranked():
                loss = F.cross_entropy(run.model(part), label)
                loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / 6)
    return losses


@pytest.mark.parametrize(
    "training",
    [
        ScoreTraining(density=0.4),
        ScoreTraining(density=0.3, scope="global", gradual_every=3, penalty=1e-4),
        ScoreTraining("gem-miner", 0.3, freeze_every=3, penalty=1e-4),
    ],
    ids=["edge-popup", "gradual", "gem-miner"],
)
def test_a_residual_network_learns(training: ScoreTraining) -> None:
    """End to end: exact counts at every epoch, weights and affine parts untouched, statistics go on, and the
    baked network sees test images right."""
    torch.manual_seed(0)
    model = Residual()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    epochs = 24
    run = ScoredTraining(model, training, epochs, seed=1)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"{layer}.weight_score" for layer in ("stem", "one", "two", "short", "head")
    ]
    optimizer = run.attach_(torch.optim.SGD(run.parameters, 0.3, 0.9))
    total = sum(before[name].numel() for name in run.layers)
    for epoch in range(epochs):
        train(run, optimizer, range(epoch, epoch + 1))
        density = training.density_in(epoch, epochs)
        if training.method == "gem-miner":
            active = [layer.weight_active for layer in run.layers.values()]
            left = total if active[0] is None else sum(int(a.sum()) for a in active)
            assert left == round(density * total)
            for layer in run.layers.values():
                assert float(layer.weight_score.detach().min()) >= 0
                assert float(layer.weight_score.detach().max()) <= 1
                if layer.weight_active is not None:
                    frozen = ~layer.weight_active
                    assert not bool(layer.weight_score.detach()[frozen].any())
                    assert not bool(optimizer.state[layer.weight_score]["momentum_buffer"][frozen].any())
        elif training.scope == "global":
            assert sum(int(m.sum()) for m in run.masks().values()) == round(density * total)
        else:
            assert all(int(m.sum()) == round(density * m.numel()) for m in run.masks().values())
    masks = run.finish()
    assert type(model.one) is MaskedConv2d
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.requires_grad
        assert p.grad is None
    assert float(model.norm1.running_var.std()) > 0
    assert int(model.norm1.num_batches_tracked) == 6 * epochs
    x, y = images(999)
    with torch.no_grad():
        output = model.eval()(x)
    assert float((output.argmax(1) == y).double().mean()) > 0.7  # by chance 1 / 3
    twin = Residual()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith("_mask")})
    masks.apply_(twin)
    torch.testing.assert_close(twin.eval()(x).detach(), output)


@pytest.mark.parametrize("name", ["global annealed", "regularised", "gem", "gem layer", "gem zero"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_restarts_bitwise(name: str, kind: type[torch.optim.Optimizer]) -> None:
    """Cut after 2 epochs, saved, taken up in a new program's objects: the same scores and masks."""
    training, options = TRAININGS[name], {"momentum": 0.9} if kind is torch.optim.SGD else {}

    def begun() -> tuple[ScoredTraining, torch.optim.Optimizer]:
        torch.manual_seed(0)
        run = ScoredTraining(Residual(), training, EPOCHS, seed=2)
        return run, run.attach_(kind(run.parameters, 0.05, **options))

    whole, optimizer = begun()
    train(whole, optimizer, range(EPOCHS))
    first, optimizer = begun()
    train(first, optimizer, range(2))
    file = io.BytesIO()
    torch.save([first.model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    again, optimizer = begun()
    again.model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    train(again, optimizer, range(2, EPOCHS))
    for name, scores in whole.scores.items():
        assert torch.equal(again.scores[name], scores)
    masks, wanted = again.finish(), whole.finish()
    assert all(torch.equal(masks[name], mask) for name, mask in wanted.items())


@pytest.mark.parametrize("name", ["layer", "global annealed", "gem", "gem zero"])
def test_carried_masks_hold(name: str) -> None:
    torch.manual_seed(0)
    model, training = Residual(), TRAININGS[name]
    weights = [n for n, p in model.named_parameters() if p.dim() > 1]
    carried = {n: torch.rand_like(model.get_parameter(n)) < 0.5 for n in weights}
    convert_(model, masks=carried)
    run = ScoredTraining(model, training, EPOCHS, seed=2)
    optimizer = run.attach_(torch.optim.SGD(run.parameters, 0.1, 0.9, weight_decay=1e-3))
    train(run, optimizer, range(EPOCHS))
    for layer, mask in zip(run.layers.values(), carried.values(), strict=True):
        assert not bool(layer.weight_score.detach()[~mask].any())
    found = run.finish()
    assert not any(bool((found[n] & ~carried[n]).any()) for n in weights)
    counted = [[n] for n in weights] if training.scope == "layer" else [weights]
    for group in counted if training.density else []:
        size = sum(carried[n].numel() for n in group)
        assert sum(int(found[n].sum()) for n in group) == round((training.density or 0) * size)


def test_layers_left_out_stay_plain_and_frozen() -> None:
    model = Residual()
    before = model.head.weight.detach().clone()
    run = ScoredTraining(model, ScoreTraining(density=0.5), 2, unscored=["head", "stem"])
    assert not model.head.weight.requires_grad
    optimizer = run.attach_(torch.optim.SGD(run.parameters, 0.1))
    train(run, optimizer, range(2))
    assert list(run.finish()) == ["one.weight", "two.weight", "short.weight"]
    assert type(model.head) is nn.Linear
    assert torch.equal(model.head.weight, before)
    assert model.head.weight.requires_grad
    assert Masks.from_model(model).per_layer()["head.weight"] == 1.0


def test_what_was_frozen_stays_frozen_and_optimizers_go_free() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    run = ScoredTraining(model, ScoreTraining("gem-miner", penalty=0.1), 1)
    optimizer = run.attach_(torch.optim.SGD(run.parameters, 1.0))
    scores = run.parameters
    run.finish()
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]
    scores[0].grad = -10 * torch.ones_like(scores[0])
    optimizer.step()
    assert float(scores[0].detach().max()) > 1  # nothing projects it any more


def test_a_nan_score_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    run = ScoredTraining(model, ScoreTraining(density=0.5), 1)
    with torch.no_grad():
        run.parameters[0][0, 0] = torch.nan
    with pytest.raises(ArgumentError, match="NaN"), run.ranked():
        model(torch.ones(1, 4))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def mostly_pruned() -> nn.Module:
    return convert_(linear(), masks={"0.weight": torch.arange(16).view(4, 4) < 6})


def half_double() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())


def of(model: nn.Module, training: ScoreTraining, epochs: int = 1, **options: object) -> ScoredTraining:
    return ScoredTraining(model, training, epochs, **options)  # type: ignore[arg-type]


POPUP = ScoreTraining(density=0.5)
MASK = {"1.weight": torch.ones(2, 4, dtype=torch.bool)}
REFUSALS = {
    "biases": (lambda: of(linear(), ScoreTraining(density=0.5, bias=True)), "bias must be False"),
    "epochs": (lambda: of(linear(), POPUP, -1), "epochs must be an int of at least 0, got -1"),
    "seed": (lambda: of(linear(), POPUP, seed=-1), "seed must be"),
    "few epochs": (lambda: of(linear(), ScoreTraining("gem-miner", 0.5), 3), "more than 5 epochs, got 3"),
    "masks": (lambda: of(linear(), POPUP, masks=MASK), "leave out their masks"),
    "start": (
        lambda: of(linear(), ScoreTraining(density=0.5, start={})),
        "start must hold scores of 0.weight",
    ),
    "nothing": (lambda: of(nn.ReLU(), POPUP), "no Linear, Conv1d or Conv2d"),
    "dtypes": (
        lambda: of(half_double(), POPUP),
        "share dtype and device, got torch.float32",
    ),
    "carried": (lambda: of(mostly_pruned(), POPUP), "asks for 8 weights of 0.weight, .* keep 6 of 16"),
    "carried, together": (
        lambda: of(mostly_pruned(), ScoreTraining(density=0.7, scope="global")),
        "asks for 17 weights of all layers together, .* keep 14 of 24",
    ),
    "epoch": (lambda: of(linear(), POPUP).begin(1), r"epoch must be an int in \[0, 1\), got 1"),
    "optimizer": (
        lambda: of(model := linear(), POPUP).attach_(torch.optim.SGD([model[0].weight_score], 0.1)),
        "lacks the scores of 1.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    call, words = REFUSALS[name]
    with pytest.raises(ArgumentError, match=words):
        call()


def test_a_refused_network_is_as_it_was() -> None:
    model = mostly_pruned()
    before = copy.deepcopy(model)
    with pytest.raises(ArgumentError):
        of(model, POPUP)
    assert [type(layer) for layer in model] == [MaskedLinear, MaskedLinear]
    assert all(p.requires_grad for p in model.parameters())
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
