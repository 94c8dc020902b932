"""Tiny-ImageNet's folders (Stanford CS231n): train/<wnid>/images/*.JPEG and val/val_annotations.txt."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lotterykit.data.files import opened, read_at_most
from lotterykit.data.planted import Split
from lotterykit.errors import ArgumentError, LotterykitError

SIDE = 64
CLASSES = 200
ANNOTATIONS = "val/val_annotations.txt"
ANNOTATION_BYTES = 16 << 20  # the real file has 0.3 MB
MOST = {"train": 100_000, "val": 10_000}  # images, as published


def tiny_imagenet(folder: Path) -> Split:
    """x uint8 `[N, 3, 64, 64]`, y int64 `[N]`: the number of the class among the sorted names in train/.

    The test split is the published validation split (the published test images have no labels). Grey images
    get three equal channels. Needs Pillow; raises `ArgumentError` for damaged images and annotations."""
    names = sorted(path.name for path in _listed(folder / "train") if path.is_dir())
    if not 1 <= len(names) <= CLASSES:
        raise ArgumentError(f"{folder / 'train'}: found {len(names)} classes, expected 1 to {CLASSES}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        of_class = sorted(p for p in _listed(folder / "train" / name / "images") if p.suffix == ".JPEG")
        if not of_class:
            raise ArgumentError(f"{folder / 'train' / name / 'images'}: found no .JPEG file, expected some")
        paths += of_class
        if len(paths) > MOST["train"]:
            raise ArgumentError(f"{folder / 'train'}: found more than {MOST['train']} images")
        labels += [label] * len(of_class)
    tests = _annotations(folder, {name: label for label, name in enumerate(names)})
    x, x_test = decoded(paths), decoded([path for path, _ in tests])
    return x, torch.tensor(labels), x_test, torch.tensor([label for _, label in tests])


def decoded(paths: Sequence[Path]) -> Tensor:
    """JPEG files of 64 x 64 pixels as uint8 `[N, 3, 64, 64]`. Raises `ArgumentError`, naming the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise LotterykitError(f"JPEG files need Pillow ({error}): pip install 'lotterykit[data]'") from error

    x = torch.empty(len(paths), 3, SIDE, SIDE, dtype=torch.uint8)
    for i, path in enumerate(paths):
        x[i] = torch.from_numpy(_pixels(Image, path)).permute(2, 0, 1)
    return x


def _pixels(image_module: Any, path: Path) -> np.ndarray:
    """One image, uint8 `[64, 64, 3]`; the size its header tells is checked before anything is decoded."""
    damage = (OSError, ValueError, SyntaxError, IndexError, struct.error, image_module.DecompressionBombError)
    with opened(path) as stream:
        try:
            with image_module.open(stream, formats=("JPEG",)) as image:
                size = image.size
                pixels = np.array(image.convert("RGB")) if size == (SIDE, SIDE) else None
        except image_module.UnidentifiedImageError:
            raise ArgumentError(f"{path}: found no JPEG image, expected one") from None
        except damage as error:
            raise ArgumentError(f"{path}: damaged JPEG image: {error}") from None
    if pixels is None:
        raise ArgumentError(f"{path}: found {size[0]} x {size[1]} pixels, expected {SIDE} x {SIDE}")
    return pixels


def _annotations(folder: Path, label_of: dict[str, int]) -> list[tuple[Path, int]]:
    """The validation images and their labels, in the order of the file."""
    path = folder / ANNOTATIONS
    with opened(path) as stream:
        data = read_at_most(stream, ANNOTATION_BYTES)
    if len(data) == ANNOTATION_BYTES:
        raise ArgumentError(f"{path}: found {ANNOTATION_BYTES} bytes or more, expected a line an image")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: found bytes that are no text: {error}") from None
    if len(lines) > MOST["val"]:
        raise ArgumentError(f"{path}: found {len(lines)} lines, expected 1 to {MOST['val']}")
    found: list[tuple[Path, int]] = []
    for number, line in enumerate(lines, 1):
        file, name, *_ = [*line.split("\t"), "", ""]
        if name not in label_of or Path(file).name != file or file in ("", "..") or "\0" in file:
            raise ArgumentError(
                f"{path}: line {number}: found {line!r:.80}, expected a file name, a tab, a class of train/"
            )
        found.append((folder / "val" / "images" / file, label_of[name]))
    if not found:
        raise ArgumentError(f"{path}: found no line, expected one an image")
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ArgumentError(f"{folder}: cannot be read: {error.strerror}") from None
