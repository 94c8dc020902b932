"""The plan of a launch over many tensors: what it holds, and when an earlier one serves again."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from interpreted import interpret
from lotterykit.kernels import multi_tensor
from lotterykit.kernels.multi_tensor import BLOCK, plan_of

CPU = torch.device("cpu")


def rows_of(*sizes):
    tensors = [torch.zeros(size) for size in sizes]
    return [(t, None, t) for t in tensors], list(sizes)


def planned(rows, sizes):
    return plan_of(rows, sizes, CPU)


def test_a_plan_holds_addresses_sizes_and_who_owns_each_chunk():
    rows, sizes = rows_of(3, 0, 2 * BLOCK + 1, 0, 0, BLOCK, 0)
    plan = planned(rows, sizes)
    assert plan.chunks == 1 + 3 + 1
    first, expected = [0, 1, 1, 4, 4, 4, 5], []
    for (t, _, _), size, start in zip(rows, sizes, first, strict=True):
        expected += [t.data_ptr(), 0, t.data_ptr(), size, start]
    assert plan.table.tolist() == [*expected, 0, 2, 2, 2, 5]
    assert plan.table.dtype == torch.int64


def test_nothing_to_do_is_no_launch():
    assert planned(*rows_of(0, 0)).chunks == 0


def test_the_same_tensors_get_the_same_plan_and_others_another():
    rows, sizes = rows_of(5, BLOCK)
    plan = planned(rows, sizes)
    assert planned(rows, sizes) is plan
    assert planned([(t.view(-1), None, t) for t, _, _ in rows], sizes) is plan  # new objects, same memory
    moved = [(rows[0][0].clone(), None, rows[0][2]), rows[1]]
    assert planned(moved, sizes).table[0] == moved[0][0].data_ptr()
    assert planned(rows, [4, BLOCK]).table[3] == 4
    assert planned(rows[:1], sizes[:1]).chunks == 1
    with_active = [(t, t, t) for t, _, _ in rows]
    assert planned(with_active, sizes).table[1] == rows[0][0].data_ptr()
    assert planned(rows, sizes) is plan


def test_whether_loads_of_16_bytes_are_aligned():
    t = torch.zeros(9)
    assert planned([(t, None, t)], [9]).aligned
    assert not planned([(t, None, t[1:])], [8]).aligned


def test_a_graph_gets_a_plan_of_its_own_with_the_same_numbers(monkeypatch):
    rows, sizes = rows_of(7, 0, BLOCK + 3)
    kept = planned(rows, sizes)
    monkeypatch.setattr(multi_tensor, "_capturing", lambda device: True)
    captured = planned(rows, sizes)
    assert captured.table is not kept.table
    assert planned(rows, sizes) is not captured
    assert torch.equal(captured.table, kept.table)
    assert captured[1:] == kept[1:]
    monkeypatch.undo()
    assert planned(rows, sizes) is kept


def test_only_the_last_plans_are_kept():
    many = multi_tensor._remembered.cache_parameters()["maxsize"]
    tensors = [torch.zeros(1) for _ in range(2 * many)]
    plans = [planned([(t,)], [1]) for t in tensors]
    assert multi_tensor._remembered.cache_info().currsize == many
    assert planned([(tensors[-1],)], [1]) is plans[-1]
    assert planned([(tensors[0],)], [1]) is not plans[0]


AUTOCAST = """
import torch
from lotterykit.kernels import multi_tensor
from lotterykit.nn.convert import convert_
from lotterykit.ops import dispatch
calls, real = [], multi_tensor.masked_copies
multi_tensor.masked_copies = lambda *a: (calls.append(a[0][0].shape), real(*a))
from torch import nn
for layer, shape in ((nn.Linear(9, 5), (4, 9)), (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
                     (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 5, 5)),
                     (nn.Conv1d(3, 2, 2), (2, 3, 7))):
    mask = torch.rand_like(layer.weight) < 0.5
    convert_(layer, masks={"weight": mask})
    with torch.no_grad():
        layer.weight.mul_(64).round_().div_(64)  # bfloat16 holds them
    x = torch.randn(shape)
    found = []
    for backend, launches in (("reference", 0), ("triton", 1)):
        calls.clear()
        with dispatch.use_backend(backend, ops=["masked_copies"]), torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        gradients = torch.autograd.grad(y.float().square().sum(), (layer.weight, layer.bias))
        assert len(calls) == launches, (layer, backend, calls)
        assert y.dtype == torch.bfloat16 and gradients[0].dtype == torch.float32
        assert not gradients[0][~mask].any() and gradients[0].any()
        found.append((y, *gradients))
    torch.testing.assert_close(*found, rtol=0.01, atol=0.01)
calls.clear()
with dispatch.use_backend("triton", ops=["masked_copies"]):
    layer(x)
    with torch.autocast("cpu", torch.bfloat16), dispatch.use_backend("triton", ops=["masked_conv2d"]):
        layer(x)  # masks in its own loads
    with torch.autocast("cpu", torch.bfloat16):
        torch.func.functional_call(layer, dict(layer.named_parameters()), (x,))
        assert len(calls) == 1
        torch.vmap(lambda one: layer(one))(x)
assert len(calls) == 1, calls
print("done")
"""


def test_masked_layers_under_autocast_are_copied_in_one_launch_where_dispatch_says_so():
    assert "done" in interpret("-c", AUTOCAST).stdout
