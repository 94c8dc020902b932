"""Sparse layers: equal to masked ones, with kept weights only in parameter, gradient and optimizer state."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_, revert_
from lotterykit.nn.masked import MASKED, MaskedConv2d, MaskedConv3d, MaskedLinear
from lotterykit.nn.sparse import SPARSE, SparseConv1d, SparseLinear
from lotterykit.ops import batch_last
from lotterykit.ops.conv_geometry import order_of

LAYERS = [
    (lambda: nn.Linear(7, 5), (3, 7)),
    (lambda: nn.Linear(7, 5, bias=False), (2, 3, 7)),
    (lambda: nn.Linear(7, 5), (7,)),
    (lambda: nn.Linear(0, 3), (2, 0)),
    (lambda: nn.Linear(1, 1), (0, 1)),
    (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 13)),
    (lambda: nn.Conv1d(4, 6, 4, padding="same", groups=2), (2, 4, 9)),
    (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="replicate"), (4, 9)),
    (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 6, 1), (4, 5, 3)),
    (lambda: nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2)), (2, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 6, 3, padding="same"), (1, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 6, (2, 3), padding="same", padding_mode="reflect"), (2, 4, 7, 8)),
]


def twins(make, density=0.4):
    """The same layer masked and sparse, in float64."""
    masked = convert_(make().double())
    masked.weight_mask.copy_(torch.rand_like(masked.weight) < density)
    return masked, convert_(copy.deepcopy(masked), format="sparse")


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_output_and_gradients_are_those_of_the_masked_layer(make, shape, density) -> None:
    masked, sparse = twins(make, density)
    assert type(sparse) is SPARSE[type(masked)]
    assert isinstance(sparse, type(masked))
    x = torch.randn(shape, dtype=torch.float64)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    y, expected = sparse(xs[0]), masked(xs[1])
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(xs[0].grad, xs[1].grad)
    assert sparse.values.grad.shape == (int(masked.weight_mask.sum()),)
    torch.testing.assert_close(sparse.values.grad, masked.weight.grad[masked.weight_mask])
    if masked.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, masked.bias.grad)


def test_the_order_of_images_holds_from_layer_to_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1)).double()
    x, results = torch.randn(16, 3, 6, 5, dtype=torch.float64), []
    convert_(model, format="sparse")
    for images in (x.clone().requires_grad_(), batch_last(x).requires_grad_()):
        y = model(images)
        assert order_of(y) == order_of(images)
        results.append((y, *torch.autograd.grad(y.sin().sum(), [images, *model.parameters()])))
        assert order_of(results[-1][1]) == order_of(images)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("plain", [p for p, m in MASKED.items() if m in SPARSE])
def test_bias_mask(plain) -> None:
    arguments = (7, 5) if plain is nn.Linear else (7, 5, 3)
    layer = MASKED[plain](*arguments, bias_mask=True, format="sparse")
    layer.bias_mask[1] = False
    with torch.no_grad():
        layer.bias[1] = float("nan")
    shape = (3, 7) if plain is nn.Linear else (3, 7, *(5,) * len(layer.kernel_size))
    assert layer(torch.randn(shape)).isfinite().all()
    assert "bias_mask" in layer.state_dict()
    assert convert_(layer).bias_mask.tolist() == [True, False, True, True, True]


def test_dense_views() -> None:
    masked, layer = twins(lambda: nn.Conv2d(4, 6, 3, groups=2))
    assert torch.equal(layer.weight, masked.kept_weight())
    assert torch.equal(layer.weight_mask, masked.weight_mask)
    assert layer.density() == masked.density()
    (g,) = torch.autograd.grad((layer.weight**2).sum(), layer.values)
    assert torch.equal(g, 2 * layer.values)
    total = layer.weight + 1
    total += 1  # what is computed from the view is a plain tensor
    assert type(total) is torch.Tensor
    assert type(pickle.loads(pickle.dumps(layer.weight_mask))) is torch.Tensor
    assert type(copy.deepcopy(layer.weight)) is torch.Tensor


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: layer.weight_mask.fill_(False),
        lambda layer: layer.weight_mask.__setitem__(0, False),
        lambda layer: layer.weight_mask[0].fill_(False),
        lambda layer: layer.weight.data.copy_(torch.ones(5, 7)),
        lambda layer: layer.weight.detach().mul_(2),
        lambda layer: layer.weight.flatten().zero_(),
        lambda layer: nn.init.zeros_(layer.weight),
        lambda layer: torch.add(layer.weight, 1, out=layer.weight),
        lambda layer: setattr(layer, "weight", torch.ones(5, 7)),
        lambda layer: setattr(layer.weight, "data", torch.ones(5, 7)),
        lambda layer: setattr(layer, "weight_mask", torch.ones(5, 6, dtype=torch.bool)),
        lambda layer: setattr(layer, "weight_mask", torch.ones(5, 7)),
    ],
)
def test_writes_that_would_be_lost_are_refused(write) -> None:
    layer = twins(lambda: nn.Linear(7, 5))[1]
    before = copy.deepcopy(layer)
    with torch.no_grad(), pytest.raises(ArgumentError, match="weight"):
        write(layer)
    assert torch.equal(layer.weight, before.weight)
    assert torch.equal(layer.weight_mask, before.weight_mask)


def test_another_mask_repacks() -> None:
    masked, layer = twins(lambda: nn.Linear(7, 5))
    parameter, mask = layer.values, torch.rand(5, 7) < 0.5
    layer.weight_mask = mask
    assert layer.values is parameter
    assert torch.equal(layer.weight, torch.where(mask, masked.kept_weight(), 0.0))
    Masks({"weight": masked.weight_mask}).apply_(layer)
    assert torch.equal(layer.weight_mask, masked.weight_mask)
    csr = layer.csr
    layer.weight_mask = masked.weight_mask
    assert layer.csr is csr  # nothing to do
    with pytest.raises(ArgumentError, match="shape"):
        Masks({"weight": mask.T}).apply_(layer)
    assert torch.equal(Masks.from_model(layer)["weight"], masked.weight_mask)
    assert type(Masks.from_model(layer)["weight"]) is torch.Tensor


def test_reset_keeps_the_structure() -> None:
    layer = twins(lambda: nn.Linear(7, 5))[1]
    parameter, before, mask = layer.values, layer.values.detach().clone(), layer.weight_mask
    layer.reset_parameters()
    assert layer.values is parameter
    assert not torch.equal(layer.values, before)
    assert torch.equal(layer.weight_mask, mask)


def test_constructor_and_repr() -> None:
    layer = MaskedLinear(4, 2, format="sparse")
    assert repr(layer) == "SparseLinear(in_features=4, out_features=2, bias=True, density=1)"
    assert [n for n, _ in layer.named_parameters()] == ["values", "bias"]
    assert list(layer.state_dict()) == ["weight", "bias", "weight_mask"]
    assert type(MASKED[nn.Conv1d](2, 3, 3, format="sparse")) is SparseConv1d
    for make in (lambda f: MaskedLinear(2, 2, format=f), lambda f: MaskedConv2d(2, 2, 1, format=f)):
        with pytest.raises(ArgumentError, match="unknown format 'spars'"):
            make("spars")
    with pytest.raises(ArgumentError, match="Conv3d has no sparse form"):
        MaskedConv3d(2, 2, 1, format="sparse")
    assert MaskedConv3d(2, 2, 1, format="auto").format == "masked"
    with pytest.raises(ArgumentError, match="3 or 4 dimensions"):
        MaskedConv2d(2, 2, 1, format="sparse")(torch.ones(2, 2))


def test_moves_and_meta() -> None:
    layer = twins(lambda: nn.Linear(7, 5))[1].float()
    assert layer.values.dtype == torch.float32
    assert layer.double()(torch.ones(1, 7, dtype=torch.float64)).dtype == torch.float64
    state, mask = layer.state_dict(), layer.weight_mask
    meta = copy.deepcopy(layer).to("meta")
    assert meta.state_dict()["weight"].is_meta
    assert torch.equal(meta.weight_mask, mask)
    meta.load_state_dict(state, assign=True)
    assert torch.equal(meta.weight, layer.weight)
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty.weight, layer.weight)


def test_parameters_stay_the_same_objects_through_every_format() -> None:
    layer = nn.Linear(7, 5)
    parameters, names = list(layer.parameters()), []
    mask, x = torch.rand(5, 7) < 0.5, torch.randn(2, 7)
    with torch.no_grad():
        layer.weight.mul_(mask)
    y = layer(x)
    loss = y.sum()  # a graph of before that stays alive
    loss.backward(retain_graph=True)
    gradient = layer.weight.grad.clone()
    for change in (
        lambda: convert_(layer, masks={"weight": mask}),
        lambda: convert_(layer, format="sparse"),
        lambda: convert_(layer, format="sparse"),
        lambda: convert_(layer),
        lambda: revert_(layer),
        lambda: convert_(layer, masks={"weight": mask}, format="sparse"),
        lambda: revert_(layer),
    ):
        assert change() is layer
        names.append(type(layer).__name__)
        assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
        torch.testing.assert_close(layer(x), y)
        torch.testing.assert_close(layer.weight.grad[mask] if type(layer) is not SparseLinear else
                                   layer.values.grad, gradient[mask])  # fmt: skip
        (g,) = torch.autograd.grad(layer(x).sum(), [parameters[0]])
        assert g.shape == parameters[0].shape
    assert names == ["MaskedLinear", "SparseLinear", "SparseLinear", "MaskedLinear", "Linear", "SparseLinear",
                     "Linear"]  # fmt: skip


def test_tied_weights_are_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[2].weight = model[1].weight
    with pytest.raises(ArgumentError, match=r"layer '2' cannot be sparse: its weight is shared by '1', '2'"):
        convert_(model, format="sparse")
    assert type(model[0]) is nn.Linear
    twice = nn.Sequential(nn.Linear(3, 3))
    twice.append(twice[0])
    assert convert_(twice, format="sparse")[0] is twice[1]  # one layer used twice is one layer
    with pytest.raises(ArgumentError, match="unknown format"):
        convert_(model, format="dense")


def test_reparametrized_and_meta_layers_are_refused() -> None:
    layer = MaskedLinear(3, 2, format="sparse")
    prune.random_unstructured(layer, "values", 0.5)
    with pytest.raises(ArgumentError, match="no parameter 'values'"):
        convert_(nn.Sequential(layer))
    with pytest.raises(ArgumentError, match="on meta"):
        MaskedLinear(3, 2, device="meta", format="sparse")
    assert MaskedLinear(3, 2, device="meta", format="auto").format == "masked"


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_encoder_layers_in_their_inference_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    masks = {f"linear{i}.weight": torch.rand(s) < 0.5 for i, s in ((1, (16, 8)), (2, (8, 16)))}
    convert_(layer, masks=masks, format="sparse")
    assert layer.linear1.format == "sparse"
    x = torch.randn(2, 5, 8)
    with torch.inference_mode():
        y = layer(x)
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(revert_(layer)(x), y)


def test_functional_call_of_a_dense_weight_is_refused() -> None:
    layer = MaskedLinear(3, 2, format="sparse")
    with pytest.raises(ArgumentError, match="write to values"):
        torch.func.functional_call(layer, {"weight": torch.ones(2, 3)}, (torch.ones(1, 3),))


def test_gradcheck_twice() -> None:
    layer = twins(lambda: nn.Linear(4, 3))[1]
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    values = layer.values.detach().requires_grad_()

    def run(x, v):
        return torch.func.functional_call(layer, {"values": v}, (x,))

    assert torch.autograd.gradcheck(run, (x, values))
    assert torch.autograd.gradgradcheck(run, (x, values))
