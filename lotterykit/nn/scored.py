"""Scored layers: `nn.Linear` and `nn.Conv2d` whose weights stay, and scores that choose among them train.

Edge-popup (Ramanujan et al. 2020) keeps the share `density` of highest |score|, Gem-Miner (Rare Gems, Alg. 1)
every score of at least .5. Train `weight_score` with any optimizer; Gem-Miner's is to be clamped to [0, 1]
after each step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError, check_density, check_seed, unknown_name
from lotterykit.ops.guess import Guess
from lotterykit.ops.threshold import Threshold, fixed_threshold, kept_mask, score_thresholds
from lotterykit.ops.threshold_conv2d import threshold_conv2d
from lotterykit.ops.threshold_linear import threshold_linear

METHODS = ("edge-popup", "gem-miner")
KEPT_FROM = 0.5  # Gem-Miner's forward keeps p >= .5


class Scored:
    """What the scored layers share, mixed in before their `torch.nn` base: scores, their threshold, loading.

    `weight` is frozen; `weight_score` is a parameter of its shape, which starts kaiming_uniform(a = sqrt 5),
    or uniform on [0, 1] for Gem-Miner. `density` in (0, 1] is edge-popup's and may be changed between steps;
    Gem-Miner takes None. `seed` draws how ties of scores fall.
    """

    method: str
    density: float | None
    seed: int
    weight: Tensor
    bias: Any
    weight_score: nn.Parameter
    _shared: Threshold | None = None

    def add_scores_(self, method: str, density: float | None, seed: int) -> None:
        """Freeze the weight and register its scores."""
        self.method, self.density, self.seed = method, density, seed
        self._guess, self._guess_together = Guess(), Guess()  # scores change little from step to step
        self.weight.requires_grad_(False)
        self.weight_score = nn.Parameter(torch.empty_like(self.weight))
        self.reset_scores()

    def reset_scores(self) -> None:
        """Draw the scores anew, from torch's global generator like every layer's parameters."""
        if self.method == "gem-miner":
            nn.init.uniform_(self.weight_score)
        elif self.weight_score.numel():
            nn.init.kaiming_uniform_(self.weight_score, a=math.sqrt(5))

    def threshold(self) -> Threshold:
        """What is kept now: of this layer's own count, or inside `ranked_together` of all layers'."""
        if self._shared is not None:
            return self._shared
        if self.method == "gem-miner":
            return fixed_threshold(KEPT_FROM, device=self.weight_score.device)
        density = check_density(self.density)
        return score_thresholds([self.weight_score], density=density, seed=self.seed, guess=self._guess)[0]

    @property
    def weight_mask(self) -> Tensor:
        """The bool mask of the weights kept now."""
        return kept_mask(self.weight_score, self.threshold())

    def extra_repr(self) -> str:
        density = "" if self.density is None else f", density={self.density:.4g}"
        return f"{super().extra_repr()}, method={self.method!r}{density}"  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accepts checkpoints of plain layers: the layer's own scores stay."""
        state_dict.setdefault(f"{prefix}weight_score", self.weight_score.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class ScoredLinear(Scored, nn.Linear):
    """`nn.Linear` of the weights whose scores are kept: y = x (W where kept)^T + b.

    weight, weight_score: `[out_features, in_features]`; the bias trains as in `nn.Linear`.

    >>> ScoredLinear(4, 2, density=0.5)
    ScoredLinear(in_features=4, out_features=2, bias=True, method='edge-popup', density=0.5)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float | None = None,
        method: str = "edge-popup",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(density, method, seed)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.add_scores_(method, density, seed)

    def forward(self, input: Tensor) -> Tensor:
        return threshold_linear(input, self.weight, self.weight_score, self.threshold(), self.bias)


class ScoredConv2d(Scored, nn.Conv2d):
    """`nn.Conv2d` of the weights whose scores are kept; `weight_score` has the shape of `weight`."""

    def __init__(
        self,
        *args: Any,
        density: float | None = None,
        method: str = "edge-popup",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        _check(density, method, seed)
        super().__init__(*args, **kwargs)
        self.add_scores_(method, density, seed)

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            around = self._reversed_padding_repeated_twice
            input, padding = nn.functional.pad(input, around, mode=self.padding_mode), 0
        return threshold_conv2d(
            input,
            self.weight,
            self.weight_score,
            self.threshold(),
            self.bias,
            stride=self.stride,  # type: ignore[arg-type]
            padding=padding,
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
        )


@contextlib.contextmanager
def ranked_together(model: nn.Module, *, density: float, seed: int = 0) -> Iterator[None]:
    """While it is open, edge-popup's layers of `model` keep the share `density` of all their scores together.

    The threshold is that of the scores on entry: open it anew for every step, around forward and backward.
    Raises `ArgumentError` where `model` has no such layer.
    """
    check_density(density)
    layers = [m for m in model.modules() if isinstance(m, Scored) and m.method == "edge-popup"]
    if not layers:
        raise ArgumentError(f"{type(model).__name__} has no layer scored by edge-popup to rank")
    ranked = [layer.weight_score for layer in layers]
    found = score_thresholds(ranked, density=density, seed=seed, guess=layers[0]._guess_together)
    before = [layer._shared for layer in layers]
    for layer, threshold in zip(layers, found, strict=True):
        layer._shared = threshold
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer._shared = own


def _check(density: float | None, method: str, seed: int) -> None:
    check_seed(seed)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "edge-popup":
        check_density(density)
    elif density is not None:
        raise ArgumentError(
            f"gem-miner keeps scores of at least {KEPT_FROM}: density must be None, got {density}"
        )
