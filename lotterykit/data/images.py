"""Data sets of images by name: where they are looked for, and `load`, which makes tensors of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lotterykit.data import cifar, idx, tiny_imagenet
from lotterykit.data.digits import digits
from lotterykit.data.files import find_file
from lotterykit.data.planted import Split
from lotterykit.errors import ArgumentError, check_seed, unknown_name

ENVIRONMENT = "LOTTERYKIT_DATA"
DEBIAN = Path("/usr/share/datasets")  # where Debian's packages dataset-* put theirs
PIXELS = ("standard", "unit", "raw")


@dataclass(frozen=True)
class Layout:
    """A way to lie on a disk: `folders` below a root (torchvision's first), `files` in one, their reader."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    read: Callable[[Path], Split]

    def lacking(self, folder: Path) -> list[str]:
        """The files that `folder` lacks, plain and with .gz."""
        return [name for name in self.files if find_file(folder, name) is None]


@dataclass(frozen=True)
class DataSet:
    """A row of `DATASETS`: `shape` [C, H, W] of an image, its pixels 0 to `white`; `fetch`: the command that
    gets it ("{root}": the folder that holds data sets); `bundled`: reads what a package brings, no layout."""

    shape: tuple[int, int, int]
    classes: int
    fetch: str
    layouts: tuple[Layout, ...] = ()
    bundled: Callable[[], Split] | None = None
    white: int = 255

    def command(self, root: Path | None = None) -> str:
        """The command that gets the data into `root`, by default into the folder LOTTERYKIT_DATA."""
        known = root or os.environ.get(ENVIRONMENT)
        return self.fetch.format(root=shlex.quote(str(known)) if known else f"${ENVIRONMENT}")


@dataclass(frozen=True)
class Images:
    """A loaded data set: `lk.train(model, data.split, recipe, validation=data.validation)`.

    `split`: (x_train, y_train, x_test, y_test), x `[N, C, H, W]` or, flattened, `[N, C * H * W]`, y int64
    `[N]`; `validation`: (x, y) taken from the training data, or None. `mean` and `std`: per channel, of the
    pixels of x_train scaled to [0, 1], whether applied or not; `black`: a black pixel `[C]` in x's units.
    `folder`: where it was found; None if it came with a package.
    """

    name: str
    split: Split
    validation: tuple[Tensor, Tensor] | None
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    black: Tensor
    folder: Path | None


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    validation: int | Callable[[int], int] = 0,
    seed: int = 0,
    flatten: bool = False,
    pixels: str = "standard",
) -> Images:
    """The data set `name` of `DATASETS`; nothing is ever downloaded.

    Looked for in `root`, in the folder of the environment variable LOTTERYKIT_DATA and in Debian's
    /usr/share/datasets, each time in torchvision's layout and in folders named as they are published.
    `validation` examples, drawn by `seed`, are taken out of the training data (P4: 5,000); the others keep
    their order; a function gets the number of all of them. `pixels`: "standard" (float32, mean 0 and
    deviation 1 in each channel of x_train; the test and validation data by the same numbers), "unit" (float32
    in [0, 1]) or "raw" (uint8).

    Raises `ArgumentError`: where the data are nowhere (with the places and the command that gets them), are
    damaged (with the file, what was found and what was expected), or an argument is bad.
    """
    data_set = _named(name)
    check_seed(seed)
    if pixels not in PIXELS:
        raise unknown_name("pixels", pixels, PIXELS)
    if not callable(validation):
        _check_validation(validation)
    if data_set.bundled is not None:
        folder, (x, y, x_test, y_test) = None, data_set.bundled()
    else:
        folder, layout = _found(name, root)
        x, y, x_test, y_test = layout.read(folder)
    if callable(validation):
        validation = _check_validation(validation(len(x)))
    if validation >= len(x):
        raise ArgumentError(f"validation must leave some of the {len(x)} training examples, got {validation}")
    held = None
    if validation:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        taken, kept = order[:validation], order[validation:].sort().values
        held = (x[taken], y[taken])
        x, y = x[kept], y[kept]
    mean, std = channel_statistics(x, data_set.white)
    shift, scale = torch.zeros(len(mean)), torch.full((len(mean),), float(data_set.white))
    if pixels == "standard":
        shift = torch.tensor(mean, dtype=torch.float64) * data_set.white
        scale = torch.tensor(std, dtype=torch.float64) * data_set.white

    def finished(raw: Tensor) -> Tensor:
        if pixels != "raw":
            raw = raw.float().sub_(shift.float()[:, None, None]).div_(scale.float()[:, None, None])
        return raw.flatten(1) if flatten else raw

    return Images(
        name=name,
        split=(finished(x), y, finished(x_test), y_test),
        validation=None if held is None else (finished(held[0]), held[1]),
        classes=data_set.classes,
        mean=mean,
        std=std,
        black=((0.0 - shift) / scale).to(torch.uint8 if pixels == "raw" else torch.float32),
        folder=folder,
    )


def find(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder that `load` would read, None for data that come with a package. Raises `ArgumentError`."""
    return None if _named(name).bundled is not None else _found(name, root)[0]


def channel_statistics(x: Tensor, white: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of `x` uint8 `[N, C, H, W]`, pixels scaled to [0, 1].

    From counts of the 256 values, so that the sums are exact. A channel without contrast gets deviation 1.
    """
    levels = torch.arange(256, dtype=torch.float64) / white
    means, deviations = [], []
    for channel in range(x.shape[1]):
        counts = torch.bincount(x[:, channel].flatten(), minlength=256).double()
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean).square() / counts.sum())
        means.append(mean)
        deviations.append(variance**0.5 or 1.0)
    return tuple(means), tuple(deviations)


def _check_validation(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ArgumentError(f"validation must be an int of at least 0, got {number!r}")
    return number


def _named(name: str) -> DataSet:
    if not isinstance(name, str) or name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def _places(data_set: DataSet, root: Path | None) -> Iterator[tuple[Path, Layout]]:
    """Every folder that may hold the data set, in the order of the search."""
    environment = os.environ.get(ENVIRONMENT)
    bases = [root, Path(environment) if environment else None, DEBIAN]
    for base in bases:
        for layout in data_set.layouts if base is not None else ():
            # only what was given may be the set's own folder: the two MNISTs have the same file names
            for folder in ("", *layout.folders) if base is root else layout.folders:
                yield base / folder, layout  # type: ignore[operator]


def _found(name: str, root: str | os.PathLike[str] | None) -> tuple[Path, Layout]:
    if root is not None and not isinstance(root, str | os.PathLike):
        raise ArgumentError(f"root must be None or a path, got {root!r:.80}")
    given = None if root is None else Path(os.path.expanduser(root))
    if given is not None and not given.is_dir():
        raise ArgumentError(f"{given}: no such folder, to look for {name} in")
    data_set = DATASETS[name]
    looked: dict[Path, str] = {}
    for folder, layout in _places(data_set, given):
        lacking = layout.lacking(folder)
        if not lacking:
            return folder, layout
        if len(lacking) < len(layout.files):
            looked[folder] = f"{folder} (lacks {', '.join(lacking)})"
        looked.setdefault(folder, str(folder))
    unset = "" if os.environ.get(ENVIRONMENT) else f"; {ENVIRONMENT} is not set"
    places = ", ".join(looked.values())
    raise ArgumentError(f"{name} is in none of {places}{unset}. To get it: {data_set.command(given)}")


_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_CURL_MNIST = (
    "curl -fL --create-dirs --output-dir {{root}}/{folder} "
    "-O '{url}/{{{{train,t10k}}}}-{{{{images-idx3,labels-idx1}}}}-ubyte.gz'"
)
_CURL_TAR = "mkdir -p {{root}} && curl -fL https://www.cs.toronto.edu/~kriz/{file} | tar xz -C {{root}}"

DATASETS: dict[str, DataSet] = {
    "mnist": DataSet(
        (1, 28, 28),
        10,
        _CURL_MNIST.format(folder="MNIST/raw", url=_MNIST_URL),
        (Layout(("MNIST/raw", "mnist"), idx.MNIST_FILES, idx.mnist_folder),),
    ),
    "fashion-mnist": DataSet(
        (1, 28, 28),
        10,
        "apt-get install dataset-fashion-mnist (Debian), or "
        + _CURL_MNIST.format(folder="FashionMNIST/raw", url=_FASHION_URL),
        (Layout(("FashionMNIST/raw", "fashion-mnist"), idx.MNIST_FILES, idx.mnist_folder),),
    ),
    "cifar10": DataSet(
        (3, 32, 32),
        10,
        _CURL_TAR.format(file="cifar-10-python.tar.gz"),
        (
            Layout(("cifar-10-batches-py",), cifar.file_names(cifar.CIFAR10, ""), cifar.cifar10_pickled),
            Layout(("cifar-10-batches-bin",), cifar.file_names(cifar.CIFAR10, ".bin"), cifar.cifar10_binary),
        ),
    ),
    "cifar100": DataSet(
        (3, 32, 32),
        100,
        _CURL_TAR.format(file="cifar-100-python.tar.gz"),
        (
            Layout(("cifar-100-python",), cifar.file_names(cifar.CIFAR100, ""), cifar.cifar100_pickled),
            Layout(("cifar-100-binary",), cifar.file_names(cifar.CIFAR100, ".bin"), cifar.cifar100_binary),
        ),
    ),
    "tiny-imagenet": DataSet(
        (3, 64, 64),
        200,
        "curl -fLO --create-dirs --output-dir {root} http://cs231n.stanford.edu/tiny-imagenet-200.zip "
        "&& unzip -q {root}/tiny-imagenet-200.zip -d {root}",
        (
            Layout(
                ("tiny-imagenet-200", "tiny-imagenet"),
                ("train", tiny_imagenet.ANNOTATIONS, "val/images"),
                tiny_imagenet.tiny_imagenet,
            ),
        ),
    ),
    "digits": DataSet((1, 8, 8), 10, "pip install 'lotterykit[data]'", bundled=digits, white=16),
}
