"""Who is measured: `PEERS`, ours and theirs, as data.

A peer serves ops by a builder `(Problem) -> Contender`; what it cannot do is a reason in one line, either of
this machine (`absent`) or of a setting (`refuses`). Published libraries are looked for at run time and are
never a dependency.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lotterykit.bench import published, replicas, synflow
from lotterykit.bench.contender import Builder, Contender, through_autograd
from lotterykit.bench.convolution import conv3x3, sparse_conv
from lotterykit.bench.layers import auto_linear
from lotterykit.bench.problems import Scores
from lotterykit.bench.setting import DTYPES, Layer, Problem, Setting
from lotterykit.errors import BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.masked_linear import masked_linear
from lotterykit.ops.sddmm import sddmm
from lotterykit.ops.spmm import spmm
from lotterykit.ops.topk_mask import topk_mask


@dataclass(frozen=True)
class Peer:
    """A row of `PEERS`; `ours` names the op of ours behind it, then those of its backward, for which a
    backend is forced; a `floor` computes less than what is asked: a bound, so its result is not checked."""

    what: str
    serves: Mapping[str, Builder]
    ours: tuple[str, ...] = ()
    floor: bool = False
    absent: Callable[[], str | None] = lambda: None
    refuses: Callable[[Setting], str | None] = field(default=lambda setting: None)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _spmm(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    values = _leaf(layer.values)
    return through_autograd(problem, lambda x: spmm(x, values, layer.csr), values, lambda d: d)


def _masked_linear(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    weight = _leaf(layer.weight)
    return through_autograd(problem, lambda x: masked_linear(x, weight, layer.mask), weight, layer.csr.gather)


def _sddmm(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    return Contender(lambda: (sddmm(layer.g, layer.x, layer.csr),))


def _topk_mask(problem: Problem) -> Contender:
    scores: Scores = problem.inputs
    return Contender(lambda: topk_mask(scores.tensors, k=scores.k))


def _of_torch(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """torch's function of x and the dense weight."""
    return conv3x3 if problem.setting.op == "conv" else F.linear


def _kept(layer: Layer) -> Callable[[Tensor], Tensor]:
    """Entries of a dense gradient in the order of the structure."""
    return lambda d: layer.csr.gather(d.flatten(1))


def _dense_masked(problem: Problem, layout: torch.memory_format = torch.contiguous_format) -> Contender:
    """What published code bases do: `F.linear(x, w * m)`."""
    layer: Layer = problem.inputs
    product = _of_torch(problem)
    weight = _leaf(layer.weight.clone(memory_format=layout))
    mask = layer.mask.to(weight.dtype).contiguous(memory_format=layout)
    return through_autograd(problem, lambda x: product(x, weight * mask), weight, _kept(layer), layout)


def _dense(problem: Problem, layout: torch.memory_format = torch.contiguous_format) -> Contender:
    layer: Layer = problem.inputs
    product = _of_torch(problem)
    weight = _leaf(layer.weight.clone(memory_format=layout))
    return through_autograd(problem, lambda x: product(x, weight), weight, _kept(layer), layout)


def _compiled(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    product = _of_torch(problem)
    weight, mask = _leaf(layer.weight), layer.mask.to(layer.weight.dtype)
    torch._dynamo.reset()  # one graph a problem: none is refused for too many before it
    forward = torch.compile(lambda x, w, m: product(x, w * m), dynamic=False)
    return through_autograd(problem, lambda x: forward(x, weight, mask), weight, _kept(layer))


def _torch_csr(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    matrix = _sparse(layer, layer.values)
    return through_autograd(problem, lambda x: (matrix @ x.T).T, layer.values, lambda d: d)


def _sparse(layer: Layer, values: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")  # CSR is in beta, its checks are off
        return torch.sparse_csr_tensor(layer.csr.row_offsets, layer.csr.columns, values, layer.csr.shape)


def _masked_gradient(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    mask = layer.mask.to(layer.x.dtype)
    return Contender(lambda: (layer.g.T @ layer.x) * mask, lambda d: (layer.csr.gather(d),))


def _compiled_gradient(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    mask = layer.mask.to(layer.x.dtype)
    torch._dynamo.reset()
    gradient = torch.compile(lambda g, x, m: (g.T @ x) * m, dynamic=False)
    return Contender(lambda: gradient(layer.g, layer.x, mask), lambda d: (layer.csr.gather(d),))


def _sampled_product(problem: Problem) -> Contender:
    layer: Layer = problem.inputs
    zero = _sparse(layer, torch.zeros_like(layer.values))
    return Contender(
        lambda: torch.sparse.sampled_addmm(zero, layer.g.T, layer.x, beta=0.0), lambda d: (d.values(),)
    )


def _threshold(problem: Problem, threshold: Callable[[Tensor, int], Tensor]) -> Contender:
    scores: Scores = problem.inputs

    def run() -> list[Tensor]:
        least = threshold(torch.cat([s.flatten() for s in scores.tensors]), scores.k)
        return [torch.where(s >= least, 1.0, 0.0) for s in scores.tensors]

    return Contender(run)


def _kthvalue(problem: Problem) -> Contender:
    return _threshold(problem, lambda flat, k: flat.kthvalue(flat.numel() - k + 1).values)


def _sort(problem: Problem) -> Contender:
    return _threshold(problem, lambda flat, k: flat.sort().values[flat.numel() - k])


def _cat_topk(problem: Problem) -> Contender:
    scores: Scores = problem.inputs

    def run() -> list[Tensor]:
        flat = torch.cat([s.flatten() for s in scores.tensors])
        mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
        mask[flat.topk(scores.k, sorted=False).indices] = True
        return list(mask.split([s.numel() for s in scores.tensors]))

    return Contender(run)


def _one_read(problem: Problem) -> Contender:
    scores: Scores = problem.inputs
    return Contender(lambda: [s.sum() for s in scores.tensors])


def _csr_refuses(setting: Setting) -> str | None:
    if setting.work == "forward+backward":
        return "its backward is dense in the weight"
    if setting.dtype in ("bfloat16", "float16") and setting.device == "cpu":
        return f"has no {setting.dtype} on the CPU"
    return None


@contextlib.contextmanager
def forced(peer: Peer, backend: str | None) -> Iterator[None]:
    """A backend forced for the ops of a peer of ours, or nothing."""
    if backend is None or not peer.ours:
        yield
        return
    with dispatch.use_backend(backend, ops=peer.ours):
        yield


def unserved(peer: Peer, backend: str | None, setting: Setting) -> str | None:
    """Why `peer`, forced to `backend`, does not take `setting`, or None where it does."""
    if (reason := peer.absent()) is not None:
        return reason
    if (reason := peer.refuses(setting)) is not None or not peer.ours:
        return reason
    with forced(peer, backend):
        try:
            for op in peer.ours:
                dispatch.select(dispatch.Call(op, setting.device, DTYPES[setting.dtype], setting.density))
        except BackendError as error:
            lines = str(error).splitlines()[1:]
            reasons = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
            return reasons.get(backend or "", "; ".join(reasons.values()) or "no backend serves this op")
    return None


def is_theirs(name: str) -> bool:
    """Whether an entry of a results file is another's that does all the work."""
    peer = PEERS.get(name.split(":")[0])
    return peer is not None and not peer.ours and not peer.floor


_OF_LAYER = ("linear", "spmm")
_OF_WEIGHT = (*_OF_LAYER, "conv")

PEERS: dict[str, Peer] = {
    "spmm": Peer("ours, on a static structure", dict.fromkeys(_OF_LAYER, _spmm), ours=("spmm", "sddmm")),
    "masked_linear": Peer(
        "ours, on a dense weight and a mask", {"linear": _masked_linear}, ours=("masked_linear",)
    ),
    "auto": Peer(
        "ours, a layer of format='auto'", {"linear": auto_linear}, ours=("spmm", "sddmm", "masked_linear")
    ),
    "sddmm": Peer("ours, at the kept places", {"sddmm": _sddmm}, ours=("sddmm",)),
    "sparse_conv2d": Peer("ours, on a static structure", {"conv": sparse_conv}, ours=("sparse_conv2d",)),
    "sparse_conv2d-last": Peer(
        "ours, images channels-last",
        {"conv": functools.partial(sparse_conv, layout=torch.channels_last)},
        ours=("sparse_conv2d",),
    ),
    "topk_mask": Peer("ours, exact counts", {"topk": _topk_mask}, ours=("topk_mask",)),
    "train_replicas": Peer(
        "ours, whole trainings in one call", {"replicas": replicas.native_training}, ours=("train_replicas",)
    ),
    "train_scores": Peer(
        "ours, whole trainings in one call", {"scores": replicas.native_training}, ours=("train_scores",)
    ),
    "synflow_masks": Peer(
        "ours, all rounds in one call", {"synflow": synflow.native_rounds}, ours=("synflow_masks",)
    ),
    "synflow_scores": Peer(
        "ours, kept weights alone", {"synflow-scores": synflow.native_scores}, ours=("synflow_scores",)
    ),
    "dense-masked": Peer(
        "torch, weight * mask each time",
        dict.fromkeys(_OF_WEIGHT, _dense_masked) | {"sddmm": _masked_gradient},
    ),
    "dense": Peer("torch, masked beforehand", dict.fromkeys(_OF_WEIGHT, _dense)),
    "dense-masked-last": Peer(
        "dense-masked, images channels-last",
        {"conv": functools.partial(_dense_masked, layout=torch.channels_last)},
    ),
    "dense-last": Peer(
        "dense, images channels-last", {"conv": functools.partial(_dense, layout=torch.channels_last)}
    ),
    "torch-compile": Peer(
        "torch.compile of dense-masked",
        dict.fromkeys(_OF_WEIGHT, _compiled) | {"sddmm": _compiled_gradient},
    ),
    "torch-csr": Peer(
        "torch.sparse CSR (MKL, cuSPARSE)",
        dict.fromkeys(_OF_LAYER, _torch_csr) | {"sddmm": _sampled_product},
        refuses=_csr_refuses,
    ),
    "sparseprop": Peer(
        "SparseProp (Nikdan et al., 2023)",
        dict.fromkeys(_OF_LAYER, published.sparseprop_linear) | {"conv": published.sparseprop_conv},
        absent=published.sparseprop_missing,
        refuses=published.sparseprop_images_refuses,
    ),
    "sparseprop-over-on": Peer(
        "SparseProp, vectorised over output pixels",
        {"conv": functools.partial(published.sparseprop_conv, over_on=True)},
        absent=published.sparseprop_missing,
        refuses=published.sparseprop_refuses,
    ),
    "sparselab": Peer(
        "SparseLab's padded CSR",
        dict.fromkeys(_OF_LAYER, published.sparselab_linear),
        absent=published.sparselab_missing,
        refuses=published.sparselab_refuses,
    ),
    "kthvalue": Peer("cat, kthvalue, where: the published pruners' way", {"topk": _kthvalue}),
    "cat-topk": Peer("cat, torch.topk, scatter", {"topk": _cat_topk}),
    "sort": Peer("cat, sort, where", {"topk": _sort}),
    "eager": Peer(
        "torch, one operation after another",
        dict.fromkeys(("replicas", "scores"), replicas.eager_training)
        | {"synflow-scores": synflow.eager_scores},
    ),
    "published": Peer("Tanaka et al.'s loop (2020), eager torch", {"synflow": synflow.published_rounds}),
    "one-read": Peer("every score read once: the floor", {"topk": _one_read}, floor=True),
}
