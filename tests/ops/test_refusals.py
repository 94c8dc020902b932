"""Bad input: every kind is refused with an error of ours that says where, and never ends the process.

Each group of calls runs in a process of its own, so that a signal fails the test instead of the test run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

SETUP = """
import json, sys
import torch
import lotterykit as lk
from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import CSR, masked_linear, sddmm, sparse_conv2d, spmm
from lotterykit.ops import synflow_masks, synflow_scores, topk_mask
from lotterykit.ops.flow_products import FlowLayer, FlowProducts, Window
from lotterykit.ops.synflow_masks import Counted
from lotterykit.training.recipe import Recipe, Split
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.scored import ScoreTraining

torch.set_num_threads(1)
ops = torch.ops.lotterykit
nan, inf = float("nan"), float("inf")
O, C = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 3, 1])  # 3 x 4
i32 = lambda *n: torch.tensor(n, dtype=torch.int32)
all3 = [True] * 3
FAR = i32(0, 10**9, 1)
MASK = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
def csr():
    return CSR.from_mask(MASK)
def structure(**changed):
    from lotterykit.ops.csr import TENSORS
    return [changed.get(name, tensor) for name, tensor in zip(TENSORS, csr().tensors)]
def written(name, code):
    found = csr()
    eval(code, {"t": getattr(found, name), "torch": torch})
    return found
x, v, g = torch.ones(2, 4), torch.ones(3), torch.ones(2, 3)
image, kernel = torch.ones(2, 1, 5, 5), CSR.from_mask(torch.tensor([[1, 0, 0, 1]] * 3).bool())
w6, GEOMETRY = torch.ones(6), [2, 2, 1, 1, 0, 0, 0, 0, 1, 1, 1]
def conv(x=image, values=w6, csr=kernel, bias=None, kernel_size=2, **options):
    return sparse_conv2d(x, values, csr, bias, kernel_size=kernel_size, **options)
X, Y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
W = {name: t.detach() for name, t in lk.nn.mlp([3, 5, 2]).state_dict().items()}
def train(layers=(3, 5, 2), data=(X, Y, X, Y), steps=None, recipe=None, **options):
    recipe = recipe or Recipe("cross_entropy", epochs=1, batch_size=4)
    return train_replicas([RunSpec(layers, Split(*data), recipe, **options)], steps=steps)
def forced(backend, call):
    with lk.use_backend(backend):
        return call()
def mother(value):
    network = lk.nn.mlp([2, 30, 30, 4])
    network[2].weight.data[3, 1] = value
    return network
"""

STRUCTURES = {
    "row pointers fall": ("CSR(torch.tensor([0, 2, 1, 3]), C, (3, 4))", "fall in row 1"),
    "row pointer below 0": ("CSR(torch.tensor([0, -1, 2, 3]), C, (3, 4))", r"row_offsets\[1\] = -1"),
    "row pointer past the end": ("CSR(torch.tensor([0, 2, 9, 3]), C, (3, 4))", r"row_offsets\[2\] = 9"),
    "row pointer overflows": ("CSR(torch.tensor([0, 2, 2**40, 3]), C, (3, 4))", r"row_offsets\[2\] = 1099"),
    "first pointer": ("CSR(torch.tensor([1, 2, 2, 3]), C, (3, 4))", r"row_offsets\[0\] must be 0"),
    "last pointer": ("CSR(torch.tensor([0, 2, 2, 2]), C, (3, 4))", r"row_offsets\[3\] must be 3"),
    "too few pointers": ("CSR(O[:3], C, (3, 4))", r"3 \+ 1 offsets, got 3"),
    "column too large": ("CSR(O, torch.tensor([0, 4, 1]), (3, 4))", r"columns\[1\] = 4 in row 0"),
    "column below 0": ("CSR(O, torch.tensor([0, 3, -1]), (3, 4))", r"columns\[2\] = -1 in row 2"),
    "column overflows": ("CSR(O, torch.tensor([0, 3, 2**32]), (3, 4))", r"columns\[2\] = 4294967296 in"),
    "columns fall": ("CSR(O, torch.tensor([3, 0, 1]), (3, 4))", "row 0 names column 3, at index 0"),
    "column twice": ("CSR(O, torch.tensor([3, 3, 1]), (3, 4))", "index 0, twice"),
    "nnz above the places": ("CSR(O, C, (1, 2))", "do not fit"),
    "nnz overflows": (
        "CSR(torch.tensor([0, 2**31]), torch.zeros(1, dtype=torch.int32).expand(2**31), (2, 2**30))",
        "contiguous",
    ),
    "shape overflows": ("CSR(O, C, (3, 2**31))", r"2\*\*31"),
    "float columns": ("CSR(O, C.float(), (3, 4))", "int32 or int64"),
    "strided columns": ("CSR(O, torch.tensor([0, 9, 3, 9, 1, 9])[::2], (3, 4))", "contiguous"),
    "columns elsewhere": ("CSR(O, C.to('meta'), (3, 4))", "one device"),
    "structure without data": ("CSR(O.to('meta'), C.to('meta'), (3, 4))", "must hold data"),
    "mask without data": ("CSR.from_mask(MASK.to('meta'))", "hold data"),
    "sparse mask": ("CSR.from_mask(MASK.to_sparse())", "dense"),
    "mask of numbers": ("CSR.from_mask(MASK.float())", "bool tensor"),
    "columns written to": ("spmm(x, v, written('columns', 't.fill_(10**9)'))", "changed in place"),
    "columns resized": ("spmm(x, torch.ones(999), written('columns', 't.resize_(999)'))", "changed in place"),
    "columns set": ("spmm(x, v, written('columns', 't.set_(torch.ones(3).int())'))", "changed in place"),
    "written to, sddmm": ("sddmm(g, x, written('row_offsets', 't.add_(7)'))", "changed in place"),
    "written to, conv": ("k = CSR.from_mask(torch.ones(3, 4).bool()); k.columns.fill_(9);"
                         "conv(values=torch.ones(12), csr=k)", "changed in place"),
}  # fmt: skip

RAW = {
    "raw spmm, columns": (
        "ops.spmm(x, v, structure(columns=FAR), None, False, False)",
        r"columns\[1\] = 1000000000 in row 0",
    ),
    "raw spmm, offsets": (
        "ops.spmm(x, v, structure(row_offsets=i32(0, 3, 1, 3)), None, False, False)",
        "row_offsets fall in row 1",
    ),
    "raw spmm, segments": (
        "ops.spmm(x, v, structure(row_segments=i32(0, 9, 9, 9)), None, False, False)",
        r"row_segments\[1\] must be 2 .* got 9",
    ),
    "raw spmm, rows": (
        "ops.spmm(g, v, structure(rows=i32(0, 0, 99)), None, False, True)",
        r"rows\[1\] must be 2 .* got 0",
    ),
    "raw spmm, permutation": (
        "ops.spmm(g, v, structure(permutation=i32(0, 99, 1)), None, False, True)",
        r"permutation\[1\] must be 2 .* got 99",
    ),
    "raw spmm, int64": (
        "ops.spmm(x, v, structure(columns=C), None, False, False)", "columns must be a dense int32",
    ),
    "raw spmm, too short": (
        "ops.spmm(x, v, structure(rows=i32(0)), None, False, False)", r"rows must be \[3\] on cpu",
    ),
    "raw spmm, too few": ("ops.spmm(x, v, structure()[:3], None, False, False)", "7 tensors"),
    "raw spmm, own but written to": (
        "t = csr(); t.columns.fill_(9); ops.spmm(x, v, t.tensors, None, False, False)", "changed in place",
    ),
    "raw spmm, written to after a good call": (
        "t = structure(columns=csr().columns.clone()); ops.spmm(x, v, t, None, False, False);"
        "t[1].fill_(10**9); ops.spmm(x, v, t, None, False, False)",
        r"columns\[0\] = 1000000000 in row 0",
    ),
    "raw spmm, values": ("ops.spmm(x, v[:1], structure(), None, False, False)", "values must be"),
    "raw spmm, dtype": ("ops.spmm(x, v.double(), structure(), None, False, False)", "share a dtype"),
    "raw spmm, transposed x": ("ops.spmm(x, v, structure(), None, False, True)", r"x must be \[..., 3\]"),
    "raw sddmm, g": ("ops.sddmm(g[:1], x, structure())", "leading dimensions"),
    "raw sddmm, columns": ("ops.sddmm(g, x, structure(columns=FAR))", r"columns\[1\] = 1000000000"),
    "raw conv, structure": (
        "ops.sparse_conv2d(image, v, structure(columns=FAR), None, False, GEOMETRY)", r"columns\[1\] = 10000",
    ),
    "raw conv, short geometry": (
        "ops.sparse_conv2d(image, w6, kernel.tensors, None, False, GEOMETRY[:5])", "geometry must be",
    ),
    "raw conv, negative padding": (
        "ops.sparse_conv2d(image, w6, kernel.tensors, None, False, [2, 2, 1, 1, -9, 0, 0, 0, 1, 1, 1])",
        "geometry must be",
    ),
    "raw conv, one image": (
        "ops.sparse_conv2d(image[0], w6, kernel.tensors, None, False, GEOMETRY)", r"\[N, in, H, W\]",
    ),
    "raw conv, gradient": (
        "ops.sparse_conv2d_backward(image, None, image, w6, kernel.tensors, GEOMETRY, all3)",
        r"g must be \[2, 3, 4, 4\]",
    ),
    "raw conv, gate": (
        "y = conv(); ops.sparse_conv2d_backward(y, v, image, w6, kernel.tensors, GEOMETRY, all3)",
        r"gate must be \[2, 3, 4, 4\]",
    ),
    "raw topk_mask, k": ("ops.topk_mask([v], -1, 0, [])", r"\[0, 3\]"),
    "raw topk_mask, seed": ("ops.topk_mask([v], 1, -1, [])", "seed"),
    "raw topk_mask, within": ("ops.topk_mask([torch.ones(300)], 1, 0, [MASK[0]])", r"within\[0\]"),
    "raw topk_mask, mixed": ("ops.topk_mask([v.double(), v], 1, 0, [])", "share dtype"),
    "raw synflow_scores, chain": (
        "ops.synflow_scores([torch.ones(3, 4), torch.ones(2, 9999)], [], [None, None])", "no chain",
    ),
    "raw synflow_scores, mask": (
        "ops.synflow_scores([torch.ones(300, 300)], [MASK], [None])", r"masks\[0\] must be",
    ),
    "raw synflow_scores, bias": (
        "ops.synflow_scores([torch.ones(300, 300)], [], [v])", r"biases\[0\] must be",
    ),
}  # fmt: skip

PRODUCTS = {
    "no CSR": ("spmm(x, v, MASK)", "csr must be a CSR"),
    "x no tensor": ("spmm([1.0], v, csr())", "x must be a tensor"),
    "values no tensor": ("spmm(x, None, csr())", "values must be a tensor"),
    "x of another size": ("spmm(g, v, csr())", r"x must be \[..., 4\]"),
    "x of integers": ("spmm(x.long(), v, csr())", "floating"),
    "x complex": ("spmm(x.cfloat(), v, csr())", "floating"),
    "x sparse": ("spmm(x.to_sparse(), v, csr())", "dense"),
    "x elsewhere": ("spmm(x.to('meta'), v, csr())", "is on meta"),
    "values elsewhere": ("spmm(x, v.to('meta'), csr())", "is on meta"),
    "values of another count": ("spmm(x, v[:2], csr())", "values must be"),
    "values of two dimensions": ("spmm(x, v.view(1, 3), csr())", r"values must be \[3\]"),
    "values of another dtype": ("spmm(x, v.double(), csr())", "share a dtype"),
    "bias of another size": ("spmm(x, v, csr(), x[0])", "bias must be"),
    "activation": ("spmm(x, v, csr(), activation='gelu')", "activation must be"),
    "g of another batch": ("sddmm(g[:1], x, csr())", "leading dimensions"),
    "g of another dtype": ("sddmm(g.double(), x, csr())", "dtype"),
    "a mask of another shape": ("masked_linear(x, torch.ones(3, 4), MASK[:2])", r"both be \[out, in\]"),
    "a mask of numbers, linear": ("masked_linear(x, torch.ones(3, 4), MASK.float())", "must be bool"),
    "forced, not built": ("forced('triton', lambda: spmm(x, v, csr()))", "was forced but cannot serve"),
    "forced, dtype": ("forced('cpu', lambda: spmm(x.half(), v.half(), csr()))", "needs dtype float32"),
    "forced, device": ("forced('cuda', lambda: topk_mask([x], k=1))", "was forced but cannot serve"),
    "forced, unknown": ("forced('mkl', lambda: None)", "unknown backend"),
}

CONVOLUTIONS = {
    "kernel of 0": ("conv(kernel_size=0)", "kernel_size must be"),
    "kernel that does not divide": ("conv(kernel_size=3)", "multiple of 3 x 3"),
    "stride of 0": ("conv(stride=0)", "stride must be"),
    "negative padding": ("conv(padding=-1)", "padding must be"),
    "padding by another name": ("conv(padding='full')", "'valid' or 'same'"),
    "same with a stride": ("conv(padding='same', stride=2)", "needs stride 1"),
    "dilation of three": ("conv(dilation=(1, 1, 1))", "dilation must be"),
    "dilation too far": ("conv(dilation=9)", "must not be smaller"),
    "groups": ("conv(groups=2)", "multiple of groups"),
    "padding overflows": ("conv(padding=2**30)", "no memory holds"),
    "memory overflows": ("conv(padding=2**30 - 9)", "no memory holds"),
    "channels": ("conv(torch.ones(2, 3, 5, 5))", r"x must be \[N, 1, H, W\]"),
    "no image": ("conv(torch.ones(5, 5))", "x must be"),
    "empty image": ("conv(torch.ones(1, 1, 0, 5))", "H and W above 0"),
    "bias, conv": ("conv(bias=v[:2])", r"bias must be \[3\]"),
    "image elsewhere": ("conv(image.to('meta'))", "is on meta"),
    "image dtype": ("conv(image.double())", "share a dtype"),
}

SELECTIONS = {
    "NaN score": ("topk_mask([v, torch.tensor([1, nan])], k=1)", r"scores\[1\] holds NaN at flat index 1"),
    "k too large": ("topk_mask([v], k=4)", r"\[0, 3\]"),
    "more than compete": ("topk_mask([x], k=3, within=[torch.eye(4)[:2].bool()])", "only 2 compete"),
    "within of another shape": ("topk_mask([x], k=1, within=[MASK])", r"within\[0\]"),
    "density above 1": ("topk_mask([x], density=1.5)", "density"),
    "density NaN": ("topk_mask([x], density=nan)", "density"),
    "one tensor": ("topk_mask(x, k=1)", "sequence"),
    "integer scores": ("topk_mask([x.long()], k=1)", "floating"),
    "scores on two devices": ("topk_mask([x, x.to('meta')], k=1)", "share dtype and device"),
    "scores without data": ("topk_mask([x.to('meta')], k=1)", "hold data"),
    "no chain": ("synflow_scores([torch.ones(3, 4), torch.ones(2, 5)])", "no chain"),
    "NaN weight": ("synflow_scores([torch.tensor([[1, nan]])])", r"weights\[0\] holds infinities or NaN"),
    "infinite bias": ("synflow_scores([torch.ones(2, 2)], biases=[torch.tensor([1, inf])])", r"biases\[0\]"),
    "integer bias": ("synflow_scores([torch.ones(2, 2)], biases=[torch.tensor([1, 2])])", r"biases\[0\]"),
    "sparse bias": ("synflow_scores([torch.ones(2, 2)], biases=[torch.ones(2).to_sparse()])", r"biases\[0\]"),
    "biases no sequence": ("synflow_scores([torch.ones(2, 2)], biases=3)", "biases must be"),
    "mask of another shape": ("synflow_scores([torch.ones(2, 2)], masks=[MASK])", r"masks\[0\]"),
    "sparse mask, synflow": ("synflow_scores([torch.ones(3, 4)], masks=[MASK.to_sparse()])", r"masks\[0\]"),
    "weights without data": ("synflow_scores([torch.ones(2, 2, device='meta')])", "hold data"),
    "overflow": ("synflow_scores([torch.full((1, 9), 1e308, dtype=torch.float64)])", "overflow float64"),
    "no Counted": ("synflow_masks([torch.ones(2, 2)], [[((0,), 1, 0)]])", "Counted"),
    "layer of another kind": ("synflow_masks([torch.ones(2, 2)], [[Counted((0.5,), 1)]])", "names layers"),
    "layer that is not there": ("synflow_masks([torch.ones(2, 2)], [[Counted((1,), 1)]])", "names layers"),
    "layer twice": ("synflow_masks([torch.ones(2, 2)], [[Counted((0, 0), 1)]])", "counts a layer twice"),
    "keeps too many": ("synflow_masks([torch.ones(2, 2)], [[Counted((0,), 5)]])", "must lie in 0..4"),
    "window past the image": (
        "FlowProducts([FlowLayer(torch.ones(1, 2), None)]).product("
        "0, torch.ones(9).double(), Window(i32(0, 8), 0, 2))",
        "window does not fit",
    ),
    "window before the image": (
        "FlowProducts([FlowLayer(torch.ones(1, 2), None)]).product("
        "0, torch.ones(9).double(), Window(i32(0, -1), 0, 2))",
        "window does not fit",
    ),
}

REPLICAS = {
    "label too large": ("train(data=(X, Y + 1, X, Y))", r"y_train must hold classes in \[0, 2\), got 1 to 2"),
    "label below 0": ("train(data=(X, Y, X, Y - 1))", r"y_test must hold classes"),
    "labels of floats": ("train(data=(X, Y.float(), X, Y))", "y_train must be"),
    "inputs of another width": ("train(data=(X[:, :2], Y, X, Y))", "x_train must be"),
    "inputs and labels differ": ("train(data=(X[:3], Y, X, Y))", "as many inputs as targets"),
    "no examples": ("train(data=(X, Y, X[:0], Y[:0]))", "as many inputs as targets"),
    "inputs of another dtype": ("train(data=(X.double(), Y, X, Y))", "x_train must be"),
    "inputs sparse": ("train(data=(X.to_sparse(), Y, X, Y))", "dense tensor with data"),
    "inputs without data": ("train(data=(X.to('meta'), Y, X, Y))", "dense tensor with data"),
    "inputs a list": ("train(data=(X.tolist(), Y, X, Y))", "got list"),
    "weights of another shape": ("train(weights=W | {'0.weight': torch.ones(5, 4)})", r"has shape \(5, 4\)"),
    "weights missing": ("train(weights={'0.weight': W['0.weight']})", "weights lack"),
    "weights of two dtypes": ("train(weights=W | {'2.bias': W['2.bias'].double()})", "share a floating"),
    "weights a list": ("train(weights=W | {'2.bias': [0.0, 0.0]})", "got list"),
    "mask shape": ("train(masks={'0.weight': MASK})", r"has shape \(3, 4\)"),
    "mask name": ("train(masks={'9.weight': MASK})", "no such name"),
    "mask dtype": ("train(masks={'0.weight': torch.ones(5, 3)})", "must be bool"),
    "mask without data, replicas": ("train(masks={'0.bias': torch.ones(5).bool().to('meta')})", "with data"),
    "widths": ("train(layers=(3, -5, 2))", "positive widths"),
    "widths of floats": ("train(layers=(3, 5.0, 2))", "positive widths"),
    "optimizer of other layers": ("train(optimizer={'exp_avg': torch.zeros(1)})", r"floating \[64\]"),
    "optimizer's step": ("train(optimizer={'step': torch.tensor(nan)})", "'step' must be"),
    "steps": ("train(steps=-1)", "steps must be"),
    "no spec": ("train_replicas([None])", "spec 0 must be a RunSpec"),
    "scores of another shape": (
        "train(scores=ScoreTraining(density=.5, start={'0.weight': v, '2.weight': v}))", "start scores of",
    ),
    "scores with NaN": (
        "train(scores=ScoreTraining(density=.5, start={n: W[n] * nan for n in ('0.weight', '2.weight')}))",
        "hold NaN",
    ),
    "scores beside masks": (
        "train(scores=ScoreTraining(density=.5), masks={'0.weight': torch.ones(5, 3).bool()})",
        "leave out their masks",
    ),
    "batch size": ("Recipe('mse', batch_size=2.5)", "batch_size"),
    "betas": ("Recipe('mse', betas=(2.0, 0.9))", "betas"),
    "a mother with NaN": ("lk.plant(lk.targets.circle(4), mother(nan))", "mother's 2.weight is not finite"),
    "a mother with infinities": ("lk.plant(lk.targets.circle(4), mother(inf))", "not finite"),
}  # fmt: skip

GROUPS = {
    "structures": STRUCTURES,
    "raw ops": RAW,
    "products": PRODUCTS,
    "convolutions": CONVOLUTIONS,
    "selections": SELECTIONS,
    "replicas": REPLICAS,
}

# Says which kind it is about to try: after a signal the last line names the culprit.
RUN = """
for number, code in enumerate(json.loads(sys.stdin.read())):
    print(json.dumps([number, None]), flush=True)
    try:
        exec(code)
        outcome = "nothing: it was accepted"
    except (ArgumentError, BackendError) as error:
        outcome = str(error)
    except Exception as error:
        outcome = f"another error, {type(error).__name__}: {error}"
    print(json.dumps([number, outcome]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What became of every kind; a process that dies is started again after the kind that killed it."""
    found: dict[str, str] = {}
    waiting = [(name, code) for group in GROUPS.values() for name, (code, _) in group.items()]
    while waiting:
        done = subprocess.run(
            [sys.executable, "-c", SETUP + RUN],
            input=json.dumps([code for _, code in waiting]),
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        assert lines, done.stderr
        for number, outcome in lines:
            if outcome is not None:
                found[waiting[number][0]] = outcome
        if done.returncode == 0:
            break
        tried = lines[-1][0]
        found[waiting[tried][0]] = f"the process ended with {done.returncode}"
        waiting = waiting[tried + 1 :]
    return found


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group in GROUPS for kind in GROUPS[group]])
def test_a_bad_call_is_refused_by_name_and_place(outcomes, group, kind):
    _, message = GROUPS[group][kind]
    assert re.search(message, outcomes[kind], re.DOTALL), outcomes[kind]
    assert not outcomes[kind].startswith(("nothing:", "another error", "the process ended"))


def test_no_two_kinds_share_a_name():
    names = [kind for group in GROUPS.values() for kind in group]
    assert len(set(names)) == len(names) >= 30
