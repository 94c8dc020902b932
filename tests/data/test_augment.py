import pytest
import torch
from torch.nn.functional import pad

from lotterykit.data.augment import flip_and_crop
from lotterykit.errors import ArgumentError


def candidates(image, padding, fill):
    """Every outcome for one image [C, H, W], in the order flip, top, left, cut by hand."""
    channels, height, width = image.shape
    for version in (image, image.flip(2)):
        framed = torch.stack([pad(version[c], [padding] * 4, value=float(fill[c])) for c in range(channels)])
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                yield framed[:, top : top + height, left : left + width]


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(6, 3, 5, 8), (5, 1, 7, 7), (1, 2, 1, 1)])
def test_each_image_is_one_of_its_flips_and_crops(padding, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 1
    fill = torch.arange(shape[1]).float() - 7
    out = flip_and_crop(x, seed=5, padding=padding, fill=fill)
    assert out.shape == x.shape
    for image, got in zip(x, out, strict=True):
        assert any(torch.equal(got, want) for want in candidates(image, padding, fill))


def test_every_outcome_is_equally_likely():
    padding, count = 1, 18_000
    image = torch.arange(1.0, 10).reshape(1, 3, 3)
    out = flip_and_crop(image.expand(count, 1, 3, 3), seed=11, padding=padding)
    hits = [int((out == want).flatten(1).all(1).sum()) for want in candidates(image, padding, [0.0])]
    assert sum(hits) == count
    expected = count / len(hits)
    chi_square = sum((n - expected) ** 2 / expected for n in hits)
    assert chi_square < 41  # 17 degrees of freedom, p = .001


def test_seed_and_step_decide():
    x = torch.rand(32, 3, 8, 8)
    state = torch.get_rng_state()
    assert torch.equal(flip_and_crop(x, 1, 7), flip_and_crop(x.clone(), 1, 7))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(flip_and_crop(x, 1, 7), flip_and_crop(x, 1, 8))
    assert not torch.equal(flip_and_crop(x, 1, 7), flip_and_crop(x, 2, 7))
    assert not torch.equal(flip_and_crop(x, 1, 11), flip_and_crop(x, 11, 1))


def test_layouts_dtypes_and_empty_batches():
    x = torch.randint(0, 256, (9, 3, 6, 6), dtype=torch.uint8)
    want = flip_and_crop(x.double(), 2)
    assert torch.equal(flip_and_crop(x, 2).double(), want)
    assert torch.equal(flip_and_crop(x.contiguous(memory_format=torch.channels_last), 2).double(), want)
    assert flip_and_crop(x[:0], 2).shape == (0, 3, 6, 6)
    before = x.clone()
    flip_and_crop(x, 3, padding=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"x": torch.zeros(3, 8, 8)}, r"images \[B, C, H, W\], got \[3, 8, 8\]"),
        ({"x": [1]}, "got list"),
        ({"padding": -1}, "padding and step"),
        ({"padding": 1.5}, "padding and step"),
        ({"step": -1}, "padding and step"),
        ({"seed": -1}, "seed must be"),
        ({"fill": torch.zeros(2)}, r"one a channel \[3\], got \[2\]"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        flip_and_crop(**{"x": torch.zeros(2, 3, 8, 8), "seed": 0} | arguments)
