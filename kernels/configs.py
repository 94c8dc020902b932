"""The pinned tile configurations of the Triton kernels, all in one table.

`python benchmarks/tune_triton.py` measures candidates on a GPU and writes this file anew, whole.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """Tile sizes along i, j and r, warps, pipeline stages."""

    i: int
    j: int
    r: int
    warps: int
    stages: int


# (kernel, how A and B are multiplied, bucket of shapes, capability: 90 for 9.0, or 0 for all that have no row
# of their own). Rows of 0 are not measured: chosen so that their stages fit in 99 KB of shared memory (sm_86
# and up) and the accumulators in registers.
CONFIGS: dict[tuple[str, str, str, int], Config] = {
    ("masked_linear", "half", "narrow", 0): Config(64, 16, 64, 4, 4),
    ("masked_linear", "half", "wide", 0): Config(128, 128, 64, 8, 3),
    ("masked_linear", "half", "ragged", 0): Config(64, 64, 64, 8, 2),
    ("masked_linear", "tf32", "narrow", 0): Config(64, 16, 64, 4, 3),
    ("masked_linear", "tf32", "wide", 0): Config(128, 128, 32, 8, 3),
    ("masked_linear", "ieee", "narrow", 0): Config(64, 16, 32, 4, 2),
    ("masked_linear", "ieee", "wide", 0): Config(64, 64, 16, 8, 2),
    ("kept_product", "half", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("kept_product", "half", "wide", 0): Config(128, 128, 32, 8, 3),
    ("kept_product", "half", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("kept_product", "tf32", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("kept_product", "tf32", "wide", 0): Config(128, 128, 32, 8, 2),
    ("kept_product", "tf32", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("kept_product", "ieee", "narrow", 0): Config(64, 16, 32, 4, 2),
    ("kept_product", "ieee", "wide", 0): Config(64, 32, 16, 4, 2),
    ("kept_product", "ieee", "ragged", 0): Config(64, 32, 16, 4, 2),
    ("weight_gradient", "half", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("weight_gradient", "half", "wide", 0): Config(128, 128, 32, 8, 3),
    ("weight_gradient", "half", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("weight_gradient", "tf32", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("weight_gradient", "tf32", "wide", 0): Config(128, 128, 32, 8, 2),
    ("weight_gradient", "tf32", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("weight_gradient", "ieee", "narrow", 0): Config(64, 16, 32, 4, 2),
    ("weight_gradient", "ieee", "wide", 0): Config(64, 32, 16, 4, 2),
    ("weight_gradient", "ieee", "ragged", 0): Config(64, 32, 16, 4, 2),
    ("threshold_product", "half", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("threshold_product", "half", "wide", 0): Config(128, 128, 32, 8, 3),
    ("threshold_product", "half", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("threshold_product", "tf32", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("threshold_product", "tf32", "wide", 0): Config(128, 128, 32, 8, 2),
    ("threshold_product", "tf32", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("threshold_product", "ieee", "narrow", 0): Config(64, 16, 32, 4, 2),
    ("threshold_product", "ieee", "wide", 0): Config(64, 32, 16, 4, 2),
    ("threshold_product", "ieee", "ragged", 0): Config(64, 32, 16, 4, 2),
    ("score_gradient", "half", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("score_gradient", "half", "wide", 0): Config(128, 64, 32, 8, 3),
    ("score_gradient", "half", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("score_gradient", "tf32", "narrow", 0): Config(64, 16, 32, 4, 3),
    ("score_gradient", "tf32", "wide", 0): Config(128, 64, 32, 8, 2),
    ("score_gradient", "tf32", "ragged", 0): Config(64, 64, 32, 8, 2),
    ("score_gradient", "ieee", "narrow", 0): Config(64, 16, 32, 4, 2),
    ("score_gradient", "ieee", "wide", 0): Config(64, 32, 16, 4, 2),
    ("score_gradient", "ieee", "ragged", 0): Config(64, 32, 16, 4, 2),
}
