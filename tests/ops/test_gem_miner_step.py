import pytest
import torch

from lotterykit.errors import ArgumentError
from lotterykit.ops import dispatch
from lotterykit.ops.gem_miner_step import gem_miner_step_


@pytest.mark.parametrize("penalty", [0.0, 1e-2])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_as_torchs_optimizer_and_a_clamp(momentum, penalty):
    start, active = torch.rand(50, dtype=torch.float64), torch.rand(50) < 0.7
    start.masked_fill_(~active, 0.0)
    p, m = [start.clone()], [torch.zeros_like(start)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([parameter], 0.1, momentum)
    for _ in range(5):
        g = torch.randn(50, dtype=torch.float64)
        gem_miner_step_(p, [g], m, lr=0.1, momentum=momentum, penalty=penalty, active=[active])
        parameter.grad = (g + 2 * penalty * parameter.detach()).masked_fill(~active, 0.0)
        optimizer.step()
        parameter.data.clamp_(0.0, 1.0)
        torch.testing.assert_close(p[0], parameter.detach())
    assert not p[0][~active].any()
    assert 0 <= p[0].min() <= p[0].max() <= 1


def test_many_empty_and_nan():
    p = [torch.rand(3), torch.empty(0), torch.tensor([torch.nan, 0.5])]
    m = [torch.zeros_like(t) for t in p]
    gem_miner_step_(p, [torch.ones_like(t) for t in p], m, lr=10.0)
    assert p[0].tolist() == [0.0] * 3
    assert p[2].isnan().tolist() == [True, False]
    gem_miner_step_([], [], [], lr=0.1)


P = torch.rand(3)
IMAGE = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
BAD = {
    "lr": (lambda: gem_miner_step_([P], [P], [P], lr=-1.0), "lr must be a finite number"),
    "momentum": (lambda: gem_miner_step_([P], [P], [P], lr=1, momentum=float("nan")), "momentum must be"),
    "one tensor": (lambda: gem_miner_step_(P, [P], [P], lr=1), "scores must be a sequence"),
    "too few": (lambda: gem_miner_step_([P, P], [P], [P, P], lr=1), "2 scores need as many gradients, got 1"),
    "shape": (
        lambda: gem_miner_step_([P], [P[:2]], [P], lr=1),
        r"gradients\[0\] must be torch.float32 \(3,\)",
    ),
    "dtype": (lambda: gem_miner_step_([P], [P], [P.double()], lr=1), r"momenta\[0\] must be torch.float32"),
    "strided": (
        lambda: gem_miner_step_([torch.rand(6)[::2]], [P], [P], lr=1),
        r"scores\[0\] must be contiguous",
    ),
    "another layout": (
        lambda: gem_miner_step_([IMAGE], [IMAGE.contiguous()], [IMAGE.clone()], lr=1),
        r"gradients\[0\] must be contiguous, or channels-last where",
    ),
    "mask": (lambda: gem_miner_step_([P], [P], [P], lr=1, active=[P]), r"active\[0\] must be torch.bool"),
    "integers": (lambda: gem_miner_step_([P.long()], [P.long()], [P.long()], lr=1), "must be floating"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused(kind):
    call, message = BAD[kind]
    with pytest.raises(ArgumentError, match=message):
        call()


def test_explain():
    assert "reference: chosen" in dispatch.explain("gem_miner_step", [P], [P], [P], lr=0.1)
