import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from lotterykit.data.stack import tensors
from lotterykit.errors import ArgumentError


class Listed(Dataset):
    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


class Streamed(IterableDataset):
    def __len__(self):
        return 1

    def __iter__(self):
        yield torch.zeros(1), 0


def test_tensors_and_subsets():
    x, y = torch.rand(7, 3, 4, 4), torch.arange(7)
    got_x, got_y = tensors(Subset(TensorDataset(x, y), [4, 0, 6]))
    assert torch.equal(got_x, x[[4, 0, 6]])
    assert torch.equal(got_y, y[[4, 0, 6]])


def test_arrays_numbers_and_regression_targets():
    x, y = tensors(Listed((np.ones(3, np.float32), 4), (np.zeros(3, np.float32), np.int64(2))))
    assert x.dtype == torch.float32
    assert (y.dtype, y.tolist()) == (torch.int64, [4, 2])
    _, values = tensors(Listed((torch.zeros(2), torch.tensor([0.5, 1.0]))))
    assert values.tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pil_images_become_channels_first(mode, channels):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.arange(6 * 5 * channels, dtype=np.uint8).reshape(6, 5, channels)
    picture = image.fromarray(pixels if channels == 3 else pixels[:, :, 0], mode=None)
    assert picture.mode == mode
    x, y = tensors(Listed((picture, 3), (picture, 1)))
    assert x.shape == (2, channels, 6, 5)
    assert (x[1].permute(1, 2, 0).numpy() == pixels).all()
    assert y.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Listed(), "the dataset is empty"),
        (Streamed(), "needs __len__ and __getitem__, got Streamed"),
        (iter([]), "needs __len__ and __getitem__"),
        (Listed(torch.zeros(3)), r"example 0 must be a pair \(input, target\), got Tensor"),
        (Listed((torch.zeros(3), 0), (torch.zeros(3), 0, 0)), "example 1 must be a pair"),
        (Listed((torch.zeros(3), 0), (torch.zeros(4), 0)), r"input 1 is torch.float32 \[4\], the first is"),
        (Listed((torch.zeros(3), 0), (torch.zeros(3), 0.5)), r"target 1 is torch.float32 \[\], the first is"),
        (Listed((torch.zeros(3), "cat")), "target 0 is a str, which makes no tensor"),
        (Listed((None, 1)), "input 0 is a NoneType, which makes no tensor"),
    ],
)
def test_bad_datasets(dataset, says):
    with pytest.raises(ArgumentError, match=says):
        tensors(dataset)
