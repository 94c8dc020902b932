import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.formats import bit_mask, unpack_bits
from lotterykit.ops.masked_copies import masked_copies


def test_copies_hold_what_is_kept_in_the_layout_of_the_weight():
    weights = [
        torch.randn(5, 7),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(0),
    ]
    masks = [torch.rand(w.shape) < 0.5 for w in weights]
    for w, m in zip(weights, masks, strict=True):
        w.masked_fill_(~m, torch.nan)
    for dtype in (None, torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for got, w, m in zip(masked_copies(weights, masks, dtype=dtype), weights, masks, strict=True):
            assert got.dtype == (dtype or torch.float32)
            assert torch.equal(got, torch.where(m, w, 0.0).to(got.dtype))
            assert got.data_ptr() != w.data_ptr() or not w.numel()
    assert masked_copies(weights, masks)[1].is_contiguous(memory_format=torch.channels_last)
    assert masked_copies([], []) == []


@pytest.mark.parametrize("last", [False, True])
def test_flat_bits_lie_as_the_weight_does(last):
    mask = torch.rand(3, 5, 2, 2) < 0.4
    flat = unpack_bits(bit_mask(mask).flat_bits(last)[None], mask.numel())[0]
    assert torch.equal(flat, (mask.permute(0, 2, 3, 1) if last else mask).reshape(-1))


W, M = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
BAD = {
    "one tensor": (lambda: masked_copies(W, [M]), "weights must be a sequence"),
    "too few masks": (lambda: masked_copies([W, W], [M]), "2 weights need as many masks"),
    "mask of another shape": (lambda: masked_copies([W], [M.T]), r"masks\[0\] must be bool \(2, 3\)"),
    "mask of numbers": (lambda: masked_copies([W], [W]), r"masks\[0\] must be bool"),
    "integers": (lambda: masked_copies([W.long()], [M]), "must share a floating dtype"),
    "two dtypes": (lambda: masked_copies([W, W.double()], [M, M]), r"weights\[1\] is torch.float64"),
    "integer copies": (lambda: masked_copies([W], [M], dtype=torch.int8), "dtype must be floating"),
    "sparse": (lambda: masked_copies([W.to_sparse()], [M]), "must be a dense tensor"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused(kind):
    call, message = BAD[kind]
    with pytest.raises(ArgumentError, match=message):
        call()


def test_explain():
    assert "reference: chosen" in dispatch.explain("masked_copies", [W], [M])
