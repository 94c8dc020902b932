"""Scored layers: `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` whose weights stay, and scores that choose among
them train; `lotterykit.nn.supermask` turns the layers of a network into these and back.

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
    Gem-Miner takes None. `seed` draws how ties of scores fall. `weight_active`: a bool buffer, False where
    the weight is out for good (`restrict_`), or None; it travels in the state_dict.
    """

    method: str
    density: float | None
    seed: int
    weight: Tensor
    bias: Any
    weight_score: nn.Parameter
    weight_active: Tensor | None
    _shared: Threshold | None = None

    def add_scores_(
        self, method: str, density: float | None, seed: int, scores: Tensor | None = None
    ) -> None:
        """Freeze the weight and register its scores: those given, else drawn by `reset_scores`."""
        self.method, self.density, self.seed = method, density, seed
        self._guess, self._guess_together = Guess(), Guess()  # scores change little from step to step
        self.weight.requires_grad_(False)
        self.register_buffer("weight_active", None)  # type: ignore[attr-defined]
        if scores is not None:
            self.weight_score = nn.Parameter(scores)
            return
        self.weight_score = nn.Parameter(torch.empty_like(self.weight))
        self.reset_scores()

    @torch.no_grad()
    def restrict_(self, active: Tensor) -> None:
        """Let the entries outside `active` (bool, as the weight) never be kept again: their score becomes 0.

        Gem-Miner's freezing. A score of 0 may still get a gradient, which whoever trains it has to drop.
        """
        self.weight_active = torch.empty_like(self.weight_score, dtype=torch.bool).copy_(active)
        self.weight_score.masked_fill_(~active, 0.0)

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
        kept = kept_mask(self.weight_score, self.threshold())
        return kept if self.weight_active is None else kept & self.weight_active

    def extra_repr(self) -> str:
        density = "" if self.density is None else f", density={self.density:.4g}"
        return f"{super().extra_repr()}, method={self.method!r}{density}"  # type: ignore[misc]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accepts checkpoints of plain layers: the layer's own scores stay, and its active weights; others
        bring theirs."""
        if f"{prefix}weight_active" in state_dict and self.weight_active is None:
            self.weight_active = torch.ones_like(self.weight, dtype=torch.bool)
        elif self.weight_active is not None:
            state_dict.setdefault(f"{prefix}weight_active", self.weight_active)
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
        check_scoring(method, density, seed)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.add_scores_(method, density, seed)

    def forward(self, input: Tensor) -> Tensor:
        return threshold_linear(input, self.weight, self.weight_score, self.threshold(), self.bias)


class _ScoredConv(Scored):
    """The convolutions: the arguments of their `torch.nn` base, and those of the scores."""

    def __init__(
        self,
        *args: Any,
        density: float | None = None,
        method: str = "edge-popup",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_scoring(method, density, seed)
        super().__init__(*args, **kwargs)
        self.add_scores_(method, density, seed)

    def padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, padded where zeros are not what pads it, and the zeros that are left to add."""
        layer: Any = self
        if layer.padding_mode == "zeros":
            return input, layer.padding
        around = layer._reversed_padding_repeated_twice
        return nn.functional.pad(input, around, mode=layer.padding_mode), "valid"


class ScoredConv1d(_ScoredConv, nn.Conv1d):
    """`nn.Conv1d` of the weights whose scores are kept; `weight_score` has the shape of `weight`."""

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self.padded(input)
        return threshold_conv2d(
            input.unsqueeze(-2),
            self.weight.unsqueeze(-2),
            self.weight_score.unsqueeze(-2),
            self.threshold(),
            self.bias,
            stride=(1, self.stride[0]),
            padding=padding if isinstance(padding, str) else (0, padding[0]),
            dilation=(1, self.dilation[0]),
            groups=self.groups,
        ).squeeze(-2)


class ScoredConv2d(_ScoredConv, nn.Conv2d):
    """`nn.Conv2d` of the weights whose scores are kept; `weight_score` has the shape of `weight`."""

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self.padded(input)
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


def check_scoring(method: str, density: float | None, seed: int) -> None:
    """Raises `ArgumentError` unless these are the method, the density and the seed of scored layers."""
    check_seed(seed)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "edge-popup":
        check_density(density)
    elif density is not None:
        raise ArgumentError(
            f"gem-miner keeps scores of at least {KEPT_FROM}: density must be None, got {density}"
        )
