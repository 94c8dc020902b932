"""sparse_conv2d against float64 dense convolutions, on every backend and instruction set; its gradients."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys

import pytest
import torch
from conv_cases import Bounds, cases
from torch.library import opcheck
from torch.nn import functional as F

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import batch_last, dispatch, sparse_conv2d
from lotterykit.ops.conv_geometry import ORDERS, geometry_of, in_order, order_of
from lotterykit.ops.csr import CSR
from lotterykit.ops.sparse_conv2d import (
    backward_reference,
    call_of,
    sample_inputs,
    sparse_conv2d_reference,
)
from lotterykit.ops.sparse_conv2d_native import backward_cpu, sparse_conv2d_cpu

needs_native = pytest.mark.skipif(dispatch.missing("cpu") is not None, reason=str(dispatch.missing("cpu")))
ISA = importlib.import_module("lotterykit._cpu").isa_levels() if dispatch.missing("cpu") is None else []
SAMPLES = len(sample_inputs())
ALL = (True, True, True)
INF, NAN = float("inf"), float("nan")


def called(arguments, options):
    """A function of the tensors among the arguments, and these."""
    x, values, csr, bias = arguments
    inputs = [t for t in (x, values, bias) if t is not None]
    return (lambda x, v, b=None: sparse_conv2d(x, v, csr, b, **options)), inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_250_cases_keep_the_bound_on_every_implementation(dtype, seed):
    for number, case in enumerate(cases(250, seed, dtype)):
        bounds = Bounds(case)
        arguments = (case.x, case.values, case.csr.tensors, case.bias, case.relu, case.geometry)
        gradient = (case.g, bounds.gate, case.x, case.values, case.csr.tensors, case.geometry, ALL)
        for isa in ISA:
            assert bounds.forward(sparse_conv2d_cpu(*arguments, isa=isa)), (number, isa)
            assert bounds.backward(backward_cpu(*gradient, isa=isa)), (number, isa)
        assert bounds.forward(sparse_conv2d_reference(*arguments)), number
        assert bounds.backward(backward_reference(*gradient)), number


def test_the_reference_holds_where_torch_crashes_on_channels_last():
    """float32 images narrower than their padding, with AVX-512; a crash ends the whole test run."""
    for shape, kernel, dilation, groups in (((2, 2, 17, 1), (4, 1), 2, 1), ((33, 15, 8, 1), 1, (1, 2), 3)):
        x = torch.randn(shape).to(memory_format=torch.channels_last)
        geometry = geometry_of("test", kernel, 2, 1, dilation, groups)
        csr = CSR.from_mask(torch.rand(24, shape[1] // groups * geometry[0] * geometry[1]) < 0.5)
        values = torch.randn(csr.nnz)
        y = sparse_conv2d_reference(x, values, csr.tensors, None, False, geometry)
        wide = sparse_conv2d_reference(x.double(), values.double(), csr.tensors, None, False, geometry)
        torch.testing.assert_close(y, wide.float())


def test_the_bounds_catch_wrong_results():
    case = next(
        c for c in cases(500, 1, torch.float32) if c.csr.nnz > 9 and min(c.g.shape) > 3 and not c.relu
    )
    bounds = Bounds(case)
    rest = (case.csr.tensors, case.bias, False, case.geometry)
    assert not bounds.forward(sparse_conv2d_reference(case.x, case.values.roll(1), *rest))
    gradient = (case.x, case.values, case.csr.tensors, case.geometry, ALL)
    dx, dvalues, dbias = backward_reference(case.g, None, *gradient)
    assert bounds.backward((dx, dvalues, dbias))
    assert not bounds.backward((dx, dvalues.roll(1), dbias))
    assert not bounds.backward((dx.roll(1, 0), dvalues, dbias))
    assert not bounds.backward((dx, dvalues, dbias.roll(1)))


@needs_native
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(19, 40, 9, 11), (70, 40, 4, 4), (32, 40, 12, 16)])
def test_results_do_not_depend_on_threads_or_repeats(order, shape):
    """Bitwise; over instruction sets only within rounding, as they add in other orders and fuse or not."""
    csr = CSR.from_mask(torch.rand(80, 40 * 9) < 0.2)
    values, bias, x = torch.randn(csr.nnz), torch.randn(80), torch.randn(shape)
    x = in_order(x, order)
    geometry = geometry_of("test", 3, 1, 1, 1, 1)
    before = torch.get_num_threads()
    try:
        for isa in ISA:
            results = []
            for threads in (1, 2, 3, 2, 1):
                torch.set_num_threads(threads)
                y = sparse_conv2d_cpu(x, values, csr.tensors, bias, True, geometry, isa=isa)
                rest = (x, values, csr.tensors, geometry, ALL)
                results.append((y, *backward_cpu(y.sin(), y, *rest, isa=isa)))
            assert all(torch.equal(a, b) for r in results for a, b in zip(results[0], r, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
@pytest.mark.parametrize("number", range(SAMPLES))
def test_gradients_agree_with_finite_differences_twice(number, backend):
    function, inputs = called(*sample_inputs(seed=2, requires_grad=True)[number])
    with dispatch.use_backend(backend):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def op_arguments(arguments, options):
    """The same call as arguments of the custom op."""
    x, values, csr, bias = arguments
    images = x.detach().unsqueeze(0).requires_grad_() if x.dim() == 3 else x
    of = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    geometry = geometry_of("test", *(of[name] for name in names))
    return images, values, csr.tensors, bias, "activation" in options, geometry


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck(number):
    x, values, structure, bias, relu, geometry = op_arguments(
        *sample_inputs(seed=3, requires_grad=True)[number]
    )
    opcheck(torch.ops.lotterykit.sparse_conv2d, (x, values, structure, bias, relu, geometry))


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck_of_the_backward_op(number):
    x, values, structure, bias, relu, geometry = op_arguments(
        *sample_inputs(seed=3, requires_grad=True)[number]
    )
    y = sparse_conv2d_reference(x, values, structure, bias, relu, geometry).detach()
    g = torch.randn_like(y).requires_grad_()
    wants = [True, number % 2 == 0, number % 3 == 0]
    arguments = (g, y if relu else None, x, values, structure, geometry, wants)
    # One sample is traced forward and backward, which takes seconds; the others only forward. In torch 2.11
    # the second derivative of torch's own convolution, which is traced there, refuses symbolic sizes.
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    checks = {} if number == 0 and torch.__version__ >= (2, 13) else {"test_utils": cheap}
    opcheck(torch.ops.lotterykit.sparse_conv2d_backward, arguments, **checks)


@pytest.mark.parametrize("number", range(SAMPLES))
def test_the_custom_op_differentiates_twice(number):
    x, values, structure, bias, relu, geometry = op_arguments(
        *sample_inputs(seed=4, requires_grad=True)[number]
    )
    inputs = [t for t in (x, values, bias) if t is not None]

    def function(*tensors):
        b = tensors[2] if bias is not None else None
        return torch.ops.lotterykit.sparse_conv2d(tensors[0], tensors[1], structure, b, relu, geometry)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("by_op", [False, True])
def test_only_wanted_gradients_are_computed(wanted, by_op):
    (x, values, csr, bias), options = sample_inputs()[0]
    tensors = [x, values, bias]
    for number in wanted:
        tensors[number].requires_grad_()
    if by_op:
        y = torch.ops.lotterykit.sparse_conv2d(*op_arguments((x, values, csr, bias), options))
    else:
        y = sparse_conv2d(x, values, csr, bias, **options)
    y.sum().backward()
    assert [t.grad is not None for t in tensors] == [n in wanted for n in range(3)]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
def test_the_output_has_the_format_of_the_input(backend):
    csr = CSR.from_mask(torch.rand(5, 27) < 0.5)
    values = torch.randn(csr.nnz)
    x = torch.randn(2, 3, 6, 7)
    with dispatch.use_backend(backend):
        for order in ORDERS:
            images = in_order(x.clone(), order).requires_grad_()
            y = sparse_conv2d(images, values, csr, kernel_size=3)
            assert order_of(y) == order
            (dx,) = torch.autograd.grad(y.sum(), images)
            assert order_of(dx) == order
        one = sparse_conv2d(x[0], values, csr, kernel_size=3)
        assert one.shape == (5, 4, 5)
        torch.testing.assert_close(one, y[0].detach())


@needs_native
@pytest.mark.parametrize("batch", [16, 32, 37, 48, 80])
@pytest.mark.parametrize("size", [(9, 21), (24, 24)])
def test_batch_last_images_agree_with_contiguous_ones(batch, size):
    """In place and moved, in one band of rows and in many."""
    csr = CSR.from_mask(torch.rand(80, 48 * 9) < 0.1)
    values, x, bias = torch.randn(csr.nnz), torch.randn(batch, 48, *size), torch.randn(80)
    geometry = geometry_of("test", 3, 1, 1, 1, 1)
    for isa in ISA:
        y = sparse_conv2d_cpu(x, values, csr.tensors, bias, True, geometry, isa=isa)
        turned = sparse_conv2d_cpu(batch_last(x), values, csr.tensors, bias, True, geometry, isa=isa)
        assert order_of(turned) == "batch_last"
        torch.testing.assert_close(turned, y)
        rest = (values, csr.tensors, geometry, ALL)
        expected = backward_cpu(y.sin(), y, x, *rest, isa=isa)
        got = backward_cpu(batch_last(y.sin()), y, batch_last(x), *rest, isa=isa)
        assert order_of(got[0]) == "batch_last"
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)  # sums of up to 46080 products


def test_batch_last_is_a_view_where_it_can_be_and_differentiable():
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    turned = batch_last(x)
    assert turned.stride() == (1, 60, 15, 3)
    assert torch.equal(turned, x)
    assert batch_last(turned).data_ptr() == turned.data_ptr()
    assert torch.autograd.gradcheck(batch_last, x)
    assert order_of(torch.relu(turned) + 1) == "batch_last"
    assert order_of(batch_last(torch.randn(1, 2, 3, 4))) == "channels_first"  # both: one image is contiguous
    for bad in (torch.ones(2, 3, 4), [1.0]):
        with pytest.raises(ArgumentError, match=r"x must be \[N, C, H, W\], got"):
            batch_last(bad)


def test_batch_last_holds_in_a_compiled_chain():
    csr = CSR.from_mask(torch.rand(3, 27) < 0.5)
    values = torch.randn(csr.nnz, requires_grad=True)

    def chain(x, v):
        y = sparse_conv2d(x, v, csr, kernel_size=3, padding=1).relu()
        return sparse_conv2d(y, v, csr, kernel_size=3, padding=1)

    x = batch_last(torch.randn(16, 3, 4, 5)).requires_grad_()
    eager, compiled = chain(x, values), torch.compile(chain, fullgraph=True, backend="aot_eager")(x, values)
    torch.testing.assert_close(compiled, eager)
    assert order_of(eager) == order_of(compiled) == "batch_last"
    for one, other in zip(
        torch.autograd.grad(compiled.sin().sum(), [x, values]),
        torch.autograd.grad(eager.sin().sum(), [x, values]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_native)])
@pytest.mark.parametrize("value", [NAN, -1.0, 0.0])
def test_relu_keeps_nan_and_its_gradient_is_zero_at_zero(backend, value):
    csr = CSR.from_mask(torch.ones(1, 1, dtype=torch.bool))
    x = torch.full((20, 1, 2, 9), value, requires_grad=True)
    with dispatch.use_backend(backend):
        y = sparse_conv2d(x, torch.ones(1), csr, kernel_size=1, activation="relu")
        y.sum().backward()
    expected = x.detach().clone().requires_grad_()
    expected.relu().sum().backward()
    torch.testing.assert_close(y, x.relu(), equal_nan=True)
    assert torch.equal(x.grad, expected.grad)


@needs_native
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("images", [1, 16, 20])
def test_an_infinite_x_reaches_only_where_a_kept_weight_takes_it(bad, order, images):
    mask = torch.zeros(2, 2, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = mask[1, 1, 0, 2] = True
    csr = CSR.from_mask(mask.flatten(1))
    x = torch.ones(images, 2, 5, 6)
    x[0, 0, 2, 3] = bad
    with dispatch.use_backend("cpu"):
        y = sparse_conv2d(in_order(x, order), torch.ones(2), csr, kernel_size=3, padding=1)
    assert bool((y[:, 1].isfinite()).all())
    assert (~y.isfinite()).nonzero().tolist() == [[0, 0, 2, 3]]


@needs_native
def test_a_large_layer_agrees_with_the_dense_one():
    """Several units, parts and groups of blocks; the shape of a benchmark."""
    csr = CSR.from_mask(torch.rand(70, 64 * 9) < 0.3)
    tensors = [torch.randn(10, 64, 20, 32), torch.randn(csr.nnz), torch.randn(70)]
    tensors = [t.double().requires_grad_() for t in tensors]
    y = sparse_conv2d(*tensors[:2], csr, tensors[2], kernel_size=3, padding=1, activation="relu")
    weight = csr.scatter(tensors[1]).view(70, 64, 3, 3)
    expected = F.conv2d(tensors[0], weight, tensors[2], padding=1).relu()
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    for one, other in zip(
        torch.autograd.grad(y, tensors, g), torch.autograd.grad(expected, tensors, g), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_it_compiles_in_one_graph_and_maps():
    (x, values, csr, bias), _ = sample_inputs(dtype=torch.float32, requires_grad=True)[0]
    options = {"kernel_size": 3, "padding": 1, "activation": "relu"}
    compiled = torch.compile(
        lambda x, v: sparse_conv2d(x * 2, v, csr, bias, **options), fullgraph=True, backend="aot_eager"
    )
    eager = sparse_conv2d(x * 2, values, csr, bias, **options)
    torch.testing.assert_close(compiled(x, values), eager)
    expected = torch.autograd.grad(eager.square().sum(), [x, values])
    for a, b in zip(
        torch.autograd.grad(compiled(x, values).square().sum(), [x, values]), expected, strict=True
    ):
        torch.testing.assert_close(a, b)
    plain = {"kernel_size": 3, "padding": 1}
    mapped = torch.func.vmap(lambda v: sparse_conv2d(x, v, csr, **plain))(torch.stack([values, 2 * values]))
    torch.testing.assert_close(mapped[1], 2 * sparse_conv2d(x, values, csr, **plain))
    forced = dispatch.use_backend("cpu")
    with forced, pytest.raises(BackendError, match="only the reference runs"):
        torch.func.vmap(lambda v: sparse_conv2d(x, v, csr, **plain))(torch.stack([values, values]))


def test_half_precision_and_autocast():
    (x, values, csr, bias), options = sample_inputs(dtype=torch.float32)[0]
    expected = sparse_conv2d(x, values, csr, bias, **options)
    half = sparse_conv2d(x.bfloat16(), values.bfloat16(), csr, bias.bfloat16(), **options)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse_conv2d(x.bfloat16(), values, csr, bias, **options)
    assert y.dtype == torch.float32


CSR_3 = CSR.from_mask(torch.ones(2, 8, dtype=torch.bool))  # 2 output, 2 input channels, 2 x 2
X, V = torch.ones(3, 2, 4, 4), torch.ones(16)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[:, :1], V, CSR_3), {}, r"x must be \[N, 2, H, W\] or \[2, H, W\].*got \(3, 1, 4, 4\)"),
        ((X[:, 0, 0], V, CSR_3), {}, r"got \(3, 4\)"),
        ((X[:, :, :0], V, CSR_3), {}, "H and W above 0"),
        ((X, V[:5], CSR_3), {}, r"values must be \[16\], got \(5,\)"),
        ((X, V.view(2, 8), CSR_3), {}, r"values must be \[16\]"),
        ((X, V.double(), CSR_3), {}, "share a dtype"),
        ((X.int(), V.int(), CSR_3), {}, "floating"),
        ((X, V, CSR_3, torch.ones(3)), {}, r"bias must be \[2\], got \(3,\)"),
        ((X, V, CSR_3, torch.ones(2).double()), {}, "share a dtype"),
        ((X, V, CSR_3.mask()), {}, "must be a CSR, got Tensor"),
        ((X.to("meta"), V, CSR_3), {}, "on meta, but the structure on cpu"),
        ((X.to_sparse(), V, CSR_3), {}, "dense"),
        (([1.0], V, CSR_3), {}, "x must be a tensor, got list"),
        ((X, V, CSR_3), {"activation": "gelu"}, "None or 'relu', got 'gelu'"),
        ((X, V, CSR_3), {"kernel_size": 3}, "multiple of 3 x 3 columns above 0, got 8"),
        ((X, V, CSR_3), {"kernel_size": 0}, "kernel_size must be an int of at least 1 or two, got 0"),
        ((X, V, CSR_3), {"kernel_size": (2, 2, 2)}, "kernel_size must be an int"),
        ((X, V, CSR_3), {"stride": 0}, "stride must be an int of at least 1"),
        ((X, V, CSR_3), {"stride": 1.0}, "stride must be an int of at least 1"),
        ((X, V, CSR_3), {"stride": True}, "stride must be an int of at least 1"),
        ((X, V, CSR_3), {"dilation": (1, 0)}, "dilation must be an int of at least 1"),
        ((X, V, CSR_3), {"dilation": 4}, "not be smaller than the dilated kernel, y would be 0x0"),
        ((X, V, CSR_3), {"padding": -1}, "padding must be an int of at least 0"),
        ((X, V, CSR_3), {"padding": "full"}, "'valid' or 'same', got 'full'"),
        ((X, V, CSR_3), {"padding": "same", "stride": 2}, "'same' needs stride 1"),
        ((X, V, CSR_3), {"groups": 3}, "multiple of groups 3 above 0, got 2"),
        ((X, V, CSR_3), {"groups": 2}, r"x must be \[N, 4, H, W\]"),
        ((X, V, CSR_3), {"groups": 0}, "groups must be an int of at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, message):
    with pytest.raises(ArgumentError, match=message):
        sparse_conv2d(*arguments, **({"kernel_size": 2} | options))


def test_a_structure_that_was_written_to_is_refused():
    csr = CSR.from_mask(torch.ones(2, 8, dtype=torch.bool))
    csr.columns[0] = 3
    with pytest.raises(ArgumentError, match="changed in place"):
        sparse_conv2d(X, V, csr, kernel_size=2)


@needs_native
def test_a_tile_beyond_any_memory_is_refused():
    csr = CSR.from_mask(torch.ones(1, 4, dtype=torch.bool))
    far = 2**30
    with dispatch.use_backend("cpu"), pytest.raises(MemoryError):
        sparse_conv2d(
            torch.ones(1, 1, 2, 2), torch.ones(4), csr, kernel_size=2, padding=far, dilation=2 * far - 1
        )


def test_call_of_knows_the_density_from_nnz():
    (x, values, csr, bias), options = sample_inputs(dtype=torch.float32)[0]
    wanted = dispatch.Call("sparse_conv2d", "cpu", torch.float32, csr.density)
    assert call_of(x, values, csr, bias, **options) == wanted
    assert "chosen" in dispatch.explain("sparse_conv2d", x, values, csr, **options)
    with dispatch.use_backend("cpu"), pytest.raises(BackendError, match="needs dtype"):
        sparse_conv2d(x.half(), values.half(), csr, **options)


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.parametrize("work", ["forward", "backward"])
def test_ctrl_c_is_answered_within_a_fifth_of_a_second(work):
    """A child raises SIGINT in the middle of a long convolution and measures how long the answer takes."""
    code = f"""
import os, signal, threading, time, torch
from lotterykit.ops import CSR
from lotterykit.ops.sparse_conv2d_native import backward_cpu, sparse_conv2d_cpu
csr = CSR.from_mask(torch.ones(128, 128 * 9, dtype=torch.bool))
x, g, values = torch.ones(256, 128, 32, 32), torch.ones(256, 128, 32, 32), torch.ones(csr.nnz)
geometry = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
sent = 0.0
def interrupt():
    global sent
    time.sleep(0.3)
    sent = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    if {work == "forward"}:
        sparse_conv2d_cpu(x, values, csr.tensors, None, False, geometry)
    else:
        backward_cpu(g, None, x, values, csr.tensors, geometry, (True, True, True))
    print("finished")
except KeyboardInterrupt:
    print(time.perf_counter() - sent)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.2 + 0.3  # the promise, and room for a machine that runs other tests
