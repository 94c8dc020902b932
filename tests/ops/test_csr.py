"""CSR: what it holds, and that every malformed structure is refused by row and index."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.ops import native_form as module
from lotterykit.ops import spmm
from lotterykit.ops.csr import CSR
from lotterykit.ops.dispatch import missing, use_backend

OFFSETS, COLUMNS = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 3, 1])


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (3, 500), (500, 3), (211, 197)])
def test_a_mask_comes_back_and_the_transpose_agrees(shape, density):
    generator = torch.Generator().manual_seed(time.time_ns() % 2**31)
    mask = torch.rand(shape, generator=generator) < density
    csr = CSR.from_mask(mask)
    assert torch.equal(csr.mask(), mask)
    assert csr.nnz == int(mask.sum())
    assert csr.density == (csr.nnz / mask.numel() if mask.numel() else 1.0)
    assert all(t.dtype == torch.int32 and t.is_contiguous() for t in csr.tensors)
    turned = CSR.from_mask(mask.T)
    assert torch.equal(csr.column_offsets, turned.row_offsets)
    assert torch.equal(csr.rows, turned.columns)
    weight = torch.randn(shape, generator=generator)
    values = csr.gather(weight)
    assert torch.equal(values[csr.permutation.long()], turned.gather(weight.T))
    assert torch.equal(csr.scatter(values), torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("density", [0.01, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("in_features", [1, 191, 192, 193, 288, 777, 1000])
def test_segments_cut_every_row_at_multiples_of_the_block_width(in_features, density):
    csr = CSR.from_mask(torch.rand(37, in_features) < density)
    width = module.block_width(37, in_features, csr.nnz)
    assert (csr.row_segments.dim() == 2) == (width < in_features)
    if csr.row_segments.dim() == 1:
        return
    assert torch.equal(csr.row_segments[0], csr.row_offsets[:-1])
    assert torch.equal(csr.row_segments[-1], csr.row_offsets[1:])
    for block, (first, last) in enumerate(zip(csr.row_segments[:-1], csr.row_segments[1:], strict=True)):
        for row in range(37):
            inside = csr.columns[first[row] : last[row]] // width
            assert bool((inside == block).all())


def test_blocks_are_alike_and_wider_for_thinner_rows():
    assert module.block_width(500, 1024, 51_200) == 1024  # density .1
    assert module.block_width(500, 1024, 102_400) == 205  # .2
    assert module.block_width(500, 1024, 512_000) == 94  # 1
    assert module.block_width(5000, 1024, 1_024_000) == 1024  # .2, too many
    assert module.block_width(5, 0, 0) == 0
    for n_columns in (1, 95, 96, 191, 192, 300, 784, 1000, 4096):
        for density in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
            width = module.block_width(100, n_columns, int(100 * n_columns * density))
            blocks = -(-n_columns // width)
            assert blocks * width - n_columns < blocks  # no sliver at the end


MALFORMED = [
    ((OFFSETS, COLUMNS, (3,)), "two ints"),
    ((OFFSETS, COLUMNS, (3, -4)), "two ints"),
    ((OFFSETS, COLUMNS, (3, 2**31)), r"2\*\*31"),
    ((OFFSETS, COLUMNS, (3, 4.0)), "two ints"),
    (([0, 2, 2, 3], COLUMNS, (3, 4)), "row_offsets must be a tensor, got list"),
    ((OFFSETS, COLUMNS.float(), (3, 4)), "columns must be int32 or int64, got torch.float32"),
    ((OFFSETS.short(), COLUMNS, (3, 4)), "row_offsets must be int32 or int64"),
    ((OFFSETS.view(2, 2), COLUMNS, (3, 4)), "one dimension"),
    ((OFFSETS, torch.tensor([0, 9, 3, 9, 1, 9])[::2], (3, 4)), "columns must be contiguous, got stride 2"),
    ((OFFSETS, COLUMNS.to_sparse(), (3, 4)), "dense"),
    ((OFFSETS, COLUMNS.to("meta"), (3, 4)), "one device, got cpu and meta"),
    ((OFFSETS, COLUMNS, (4, 4)), r"4 \+ 1 offsets, got 4"),
    ((torch.empty(0, dtype=torch.int64), COLUMNS[:0], (0, 4)), r"0 \+ 1 offsets, got 0"),
    ((torch.tensor([0, 2, 1, 3]), COLUMNS, (3, 4)), "fall in row 1: from 2 at index 1 to 1 at index 2"),
    ((torch.tensor([0, -1, 2, 3]), COLUMNS, (3, 4)), r"row_offsets\[1\] = -1"),
    ((torch.tensor([0, 2, 4, 3]), COLUMNS, (3, 4)), r"row_offsets\[2\] = 4"),
    ((torch.tensor([0, 2, 2**40, 3]), COLUMNS, (3, 4)), r"row_offsets\[2\] = 1099511627776"),
    ((torch.tensor([1, 2, 2, 3]), COLUMNS, (3, 4)), r"row_offsets\[0\] must be 0, got 1"),
    ((torch.tensor([0, 1, 2, 2]), COLUMNS, (3, 4)), r"row_offsets\[3\] must be 3, .* got 2"),
    ((torch.tensor([0, 3, 3, 3]), COLUMNS, (3, 2)), "row 0 holds 3 places, but there are 2 columns"),
    ((OFFSETS, COLUMNS, (1, 2)), "do not fit into 1 x 2"),
    ((OFFSETS, torch.tensor([0, 4, 1]), (3, 4)), r"columns\[1\] = 4 in row 0 lies outside \[0, 4\)"),
    ((OFFSETS, torch.tensor([0, 3, -1]), (3, 4)), r"columns\[2\] = -1 in row 2 lies outside"),
    ((OFFSETS, torch.tensor([0, 3, 2**32]), (3, 4)), r"columns\[2\] = 4294967296 in row 2"),
    (
        (OFFSETS, torch.tensor([3, 0, 1]), (3, 4)),
        "row 0 names column 3, at index 0, before column 0, at index 1",
    ),
    ((OFFSETS, torch.tensor([3, 3, 1]), (3, 4)), "row 0 names column 3, at index 0, twice"),
    ((torch.tensor([0, 2**31]), torch.zeros(1, dtype=torch.int32).expand(2**31), (1, 4)), "contiguous"),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_a_malformed_structure_is_refused_by_row_and_index(number):
    arguments, message = MALFORMED[number]
    with pytest.raises(ArgumentError, match=message):
        CSR(*arguments)


@pytest.mark.parametrize("mask", [torch.ones(2, 2), torch.ones(3, dtype=torch.bool), [[True]]])
def test_a_mask_that_is_no_bool_matrix_is_refused(mask):
    with pytest.raises(ArgumentError, match=r"bool tensor \[out, in\]"):
        CSR.from_mask(mask)


def test_a_structure_is_a_copy_and_refuses_to_be_written_to():
    offsets, columns = OFFSETS.int(), COLUMNS.int()
    csr = CSR(offsets, columns, (3, 4))
    columns[0] = 1 << 30
    assert torch.equal(spmm(torch.ones(1, 4), torch.ones(3), csr), torch.tensor([[2.0, 0.0, 1.0]]))
    csr.rows[0] = 1 << 30
    with pytest.raises(ArgumentError, match="changed in place"):
        spmm(torch.ones(1, 4), torch.ones(3), csr)


@pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
def test_native_code_reads_what_was_checked_even_where_a_tensor_got_other_data():
    csr = CSR(OFFSETS, COLUMNS, (3, 4))
    csr.columns.data = torch.full((3,), 1 << 30, dtype=torch.int32)  # which no version tells
    with use_backend("cpu"):
        y = spmm(torch.ones(1, 4), torch.ones(3), csr)
    assert torch.equal(y, torch.tensor([[2.0, 0.0, 1.0]]))


def test_copies_and_pickles_work_and_inference_mode_makes_usable_structures():
    with torch.inference_mode():
        csr = CSR(OFFSETS, COLUMNS, (3, 4))
    for other in (copy.deepcopy(csr), pickle.loads(pickle.dumps(csr)), csr.to("cpu")):
        assert torch.equal(other.mask(), csr.mask())
        other.check_unchanged()
    x = torch.randn(2, 4, requires_grad=True)
    spmm(x, torch.ones(3), csr).sum().backward()
    assert x.grad is not None
