"""What drop-in means: masked and sparse layers under torch's tools, in a timm-like residual network."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from residual_network import FORMATS, network, samples, train
from torch import nn
from torch.func import functional_call, grad, vmap

from lotterykit.errors import ArgumentError
from lotterykit.nn.convert import revert_
from lotterykit.pruning.flow import live_weights
from lotterykit.pruning.prune import prune_
from lotterykit.pruning.scores import scores


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 7, 6)


@pytest.mark.parametrize("format", FORMATS)
def test_network_is_the_plain_one_with_zeros(format, x) -> None:
    model = network(format)
    assert sum(getattr(layer, "format", None) == format for layer in model.modules()) == 10
    plain = revert_(copy.deepcopy(model))
    assert not any(hasattr(layer, "format") for layer in plain.modules())
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(network("masked")(x), model(x))


@pytest.mark.parametrize("format", FORMATS)
def test_compile_in_one_graph(format, x) -> None:
    model = network(format, blocks=1)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    torch.testing.assert_close(compiled(x), model(x))
    for got, want in zip(torch.autograd.grad(compiled(x).square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("format", FORMATS)
def test_autocast(format, x) -> None:
    model = network(format)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y.float().sum().backward()
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)  # bfloat16 keeps 8 bits
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(format, duplicate, x) -> None:
    model = network(format)
    y, other = model(x), duplicate(model)
    torch.testing.assert_close(other(x), y, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    torch.testing.assert_close(model(x), y, rtol=0, atol=0)
    assert not other(x).any()


@pytest.mark.parametrize("format", FORMATS)
def test_functional_call_grad_and_vmap(format, x) -> None:
    model = network(format)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, example):
        return functional_call(model, parameters, (example[None],)).square().sum()

    per_example = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(per_example[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    both = vmap(lambda p: functional_call(model, p, (x,)))(stacked)
    torch.testing.assert_close(both[0], model(x))


@pytest.mark.parametrize("format", FORMATS)
def test_channels_last(format, x) -> None:
    model = network(format)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected)
    assert model.blocks[0].expand(model.stem(x)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("format", FORMATS)
def test_torch_export(format, x) -> None:
    model = network(format, blocks=0)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnx and onnxscript")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("format", FORMATS)
def test_onnx_export_folds_the_mask_in(format, x) -> None:
    from onnx.reference import ReferenceEvaluator

    model = network(format, blocks=0).double()
    program = torch.onnx.export(model, (x.double(),), dynamo=True, verbose=False)
    nodes = {node.op_type for node in program.model.graph}
    assert "Where" not in nodes
    assert not any(node.domain for node in program.model.graph)  # plain ONNX, no operator of ours
    assert not any(value.dtype.name == "BOOL" for value in program.model.graph.initializers.values())
    (y,) = ReferenceEvaluator(program.model_proto).run(None, {"x": x.double().numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x.double()).detach())


@pytest.mark.parametrize("format", FORMATS)
def test_double_backward(format, x) -> None:
    """GraSP's Hessian-vector product, against the plain network in float64."""
    model = network(format).double()
    plain = revert_(copy.deepcopy(model))
    found = []
    for net in (model, plain):
        layers = [net.stem, net.blocks[0].depthwise, net.blocks[1].project, net.head]
        weights = [layer._parameters.get("values", layer._parameters.get("weight")) for layer in layers]
        gradients = torch.autograd.grad(net(x.double()).square().sum(), weights, create_graph=True)
        masks = [layer.weight_mask.clone() for layer in
                 (model.stem, model.blocks[0].depthwise, model.blocks[1].project, model.head)]  # fmt: skip
        kept = [g if g.dim() == 1 else g[m] for g, m in zip(gradients, masks, strict=True)]
        dot = sum((g * g.detach()).sum() for g in kept)
        products = torch.autograd.grad(dot, weights)
        found.append([h if h.dim() == 1 else h[m] for h, m in zip(products, masks, strict=True)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ddp_on_gloo(tmp_path) -> None:
    out, script = tmp_path / "states.pt", Path(__file__).with_name("residual_network.py")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path / "init", out], env=environment, check=True, timeout=120)
    states = torch.load(out)
    for format in FORMATS:
        model = network(format)
        train(model, samples())
        for name, value in model.state_dict().items():
            torch.testing.assert_close(states[format][name], value)


def test_pruning_takes_sparse_layers_and_scores_refuse_them(x) -> None:
    model, y = network("sparse"), torch.tensor([0, 1])
    for attempt in (lambda: scores(model, "magnitude"), lambda: live_weights(model, x)):
        with pytest.raises(ArgumentError, match="layer 'stem' is a SparseConv2d: convert_"):
            attempt()
    before = {n: m for n, m in network("masked").named_buffers() if n.endswith("_mask")}
    masks = prune_(model, "grasp", density=0.2, data=[(x, y)], loss_fn=nn.functional.cross_entropy)
    assert masks.density() == pytest.approx(0.2, abs=0.01)
    assert model.stem.format == "masked"
    assert all(not (mask & ~before[f"{name}_mask"]).any() for name, mask in masks.items())
