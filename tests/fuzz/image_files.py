"""Readers of data sets: IDX, CIFAR in both layouts, JPEG."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from random import Random

import numpy as np
import torch
from damaged import Mutant, damaged_bytes
from damaged_archives import damaged_gzip, damaged_pickle, fragments, places
from reader import Reader, check_not_called, of
from written import binary, examples, idx

from lotterykit.data.cifar import CIFAR10, read_binary, read_pickled
from lotterykit.data.idx import read_idx
from lotterykit.data.tiny_imagenet import decoded

MOST = 10  # images a file


def idx_files(folder: Path) -> Reader:
    """`read_idx` of images and labels, plain and packed: what loads is what the file holds."""
    draw = np.random.default_rng(0)
    samples = [
        idx(draw.integers(0, 256, (3, 28, 28), dtype=np.uint8)),
        idx(draw.integers(0, 10, 5, dtype=np.uint8)),
    ]
    bombs = tuple(gzip.compress(bytes(size), 9, mtime=0) for size in (100, 1 << 20, 64 << 20))

    def mutant(rng: Random) -> Mutant:
        origin = rng.randrange(2)
        if rng.random() < 0.5:
            return Mutant(*damaged_gzip(rng, samples[origin], bombs), origin)
        return Mutant(*damaged_bytes(rng, samples[origin], 16), origin)

    def read(path: Path, mutant: Mutant) -> None:
        item = () if mutant.origin else (28, 28)
        x = read_idx(path, item=item, most=MOST)
        plain = mutant.data
        if plain[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                plain = stream.read(1 << 16)
        assert idx(x.numpy()) == plain

    return Reader(samples, mutant, read)


def cifar_binary(folder: Path) -> Reader:
    """`read_binary`: what loads is what the file holds."""
    samples = [binary(*examples(2))]
    bombs = tuple(gzip.compress(bytes(size), 9, mtime=0) for size in (100, 64 << 20))

    def mutant(rng: Random) -> Mutant:
        if rng.random() < 0.5:
            return Mutant(*damaged_gzip(rng, samples[0], bombs))
        return Mutant(*damaged_bytes(rng, samples[0], len(samples[0])))

    def read(path: Path, mutant: Mutant) -> None:
        x, y = read_binary(path, CIFAR10, MOST)
        plain = mutant.data
        if plain[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                plain = stream.read(1 << 16)
        assert binary(x.reshape(-1, 3072).numpy(), y.tolist()) == plain

    return Reader(samples, mutant, read)


def cifar_pickled(folder: Path) -> Reader:
    """`read_pickled`: nothing that a batch names is called, labels and shapes are right."""
    marker = folder / "called"
    hostile = fragments(str(marker))
    x, y = examples(2)
    batch = {"data": x, "labels": y, "filenames": ["a.png", "b.png"], "batch_label": "training"}
    samples = [pickle.dumps(batch, protocol) for protocol in (0, 2, 4, 5)]
    at = [places(sample) for sample in samples]

    def mutant(rng: Random) -> Mutant:
        origin = rng.randrange(len(samples))
        return Mutant(*damaged_pickle(rng, samples[origin], at[origin], hostile), origin)

    def read(path: Path, mutant: Mutant) -> None:
        try:
            x, y = read_pickled(path, CIFAR10, MOST)
            assert x.shape == (len(y), 3, 32, 32)
            assert x.dtype == torch.uint8
            assert 0 <= int(y.min()) <= int(y.max()) <= 9
        finally:
            check_not_called(marker)

    return Reader(samples, mutant, read)


def jpegs(folder: Path) -> Reader:
    """A JPEG file of Tiny-ImageNet: 64 x 64 pixels, or refused."""
    from PIL import Image

    samples = []
    for progressive in (False, True):
        out = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "JPEG", progressive=progressive)
        samples.append(out.getvalue())

    def read(path: Path, mutant: Mutant) -> None:
        assert decoded([path]).shape == (1, 3, 64, 64)

    return Reader(samples, of(samples, lambda rng, data: damaged_bytes(rng, data, 700)), read)
