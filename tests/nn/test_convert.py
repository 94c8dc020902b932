import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lotterykit.errors import ArgumentError
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_, revert_
from lotterykit.nn.masked import MaskedConv2d, MaskedLinear


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))


def test_converts_in_place_and_back():
    model, x = network(), torch.randn(2, 1, 8, 8)
    parameters, y = dict(model.named_parameters()), model(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    assert convert_(model) is model
    assert (type(model[0]), type(model[3])) == (MaskedConv2d, MaskedLinear)
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert torch.equal(model(x), y)
    model(x).sum().backward()
    optimizer.step()
    model[3].weight_mask[0] = False
    with torch.no_grad():
        model[3].weight[0] = float("nan")
    y = model(x)
    assert revert_(model) is model
    assert (type(model[0]), type(model[3])) == (nn.Conv2d, nn.Linear)
    assert all(p is parameters[n] for n, p in model.named_parameters())
    torch.testing.assert_close(model(x), y)
    assert set(model.state_dict()) == set(network().state_dict())


def test_root_layer():
    layer = nn.Linear(3, 2)
    mask = torch.rand(2, 3) < 0.5
    convert_(layer, masks={"weight": mask, "bias": torch.tensor([True, False])})
    assert type(layer) is MaskedLinear
    assert torch.equal(layer.weight_mask, mask)
    assert layer.bias_mask.tolist() == [True, False]
    revert_(layer)
    assert type(layer) is nn.Linear
    assert layer.bias[1] == 0
    assert (layer.weight[~mask] == 0).all()


def test_filter_masks_and_repeated_conversion():
    model = convert_(network(), filter_fn=lambda name, layer: name == "3")
    assert (type(model[0]), type(model[3])) == (nn.Conv2d, MaskedLinear)
    mask = torch.rand(4, 72) < 0.5
    convert_(model, masks={"3.weight": mask})
    assert type(model[0]) is MaskedConv2d
    convert_(model)
    assert torch.equal(model[3].weight_mask, mask)
    masks = Masks.from_model(model)
    assert convert_(network(), masks=masks)[3].weight_mask.equal(mask)


def test_subclasses_and_lazy_layers_are_left_alone():
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(2, 2), nn.LazyLinear(3), nn.MultiheadAttention(4, 2))
    kinds = [type(m) for m in model.modules()]
    convert_(model)
    assert [type(m) for m in model.modules()] == kinds


def test_shared_layers_and_hooks():
    layer = nn.Linear(3, 3)
    calls = []
    layer.register_forward_hook(lambda *a: calls.append(1))
    model = convert_(nn.Sequential(layer, layer))
    assert model[0] is model[1]
    model(torch.randn(1, 3))
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_encoder_layers_use_the_masks_in_their_inference_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 1).eval()
    convert_(model)
    model.layers[0].linear1.weight_mask.fill_(False)
    model.layers[0].linear2.weight_mask.fill_(False)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(fused, model(x))
    revert_(model)
    assert model.layers[0].activation_relu_or_gelu == 1
    with torch.no_grad():
        torch.testing.assert_close(model(x), fused)


@pytest.mark.parametrize("nested", [True, False])
def test_encoders_take_padding_masks_while_any_layer_is_masked(nested):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        for _ in range(2):  # converting twice must not forget what was there before
            convert_(model, filter_fn=lambda name, _: name == "layers.1.linear2")
        got = model(x, src_key_padding_mask=padding)
        torch.testing.assert_close(got[~padding], expected[~padding])
        revert_(model)
        assert model.use_nested_tensor is nested
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), expected)
    assert "_plain_use_nested_tensor" not in vars(model)


def test_bad_masks_change_nothing():
    for masks, words in (
        (
            {"3.weight": torch.ones(4, 71, dtype=torch.bool)},
            r"must be bool \[4, 72\], got torch.bool \[4, 71\]",
        ),
        ({"3.weight": torch.ones(4, 72)}, "got torch.float32"),
        ({"5.weight": torch.ones(4, 72, dtype=torch.bool)}, "names no weight or bias"),
        ({"3.weight_orig": torch.ones(4, 72, dtype=torch.bool)}, "names no weight or bias"),
    ):
        model = network()
        with pytest.raises(ArgumentError, match=words):
            convert_(model, masks=masks)
        assert type(model[3]) is nn.Linear


def test_reparametrized_layers_are_refused():
    model = network()
    prune.random_unstructured(model[3], "weight", 0.5)
    with pytest.raises(ArgumentError, match=r"'3' has no parameter 'weight'.*prune\.remove"):
        convert_(model)
    assert type(model[0]) is nn.Conv2d
