"""The whole dispatch decision as data. Rows of one op are tried from top to bottom."""

from __future__ import annotations

import torch

from lotterykit.ops.dispatch import Route

ROUTES: tuple[Route, ...] = (
    Route(
        op="topk_mask",
        backend="cuda",
        device="cuda",
        dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        kernel="lotterykit.ops.topk_mask:topk_mask_cuda",
        evidence=None,
    ),
    Route(
        op="topk_mask",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        kernel="lotterykit.ops.topk_mask:topk_mask_cpu",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="topk_mask",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.topk_mask:topk_mask_reference",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="masked_linear",
        backend="triton",
        device="cuda",
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        tf32=True,
        kernel="lotterykit.kernels.masked_linear:PRODUCTS",
        evidence=None,
    ),
    Route(
        op="masked_linear",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.masked_linear:REFERENCE",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="spmm",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.ops.spmm:spmm_cpu",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="spmm",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.spmm:spmm_reference",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="sddmm",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.ops.sddmm:sddmm_cpu",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="sddmm",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.sddmm:sddmm_reference",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="train_replicas",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.training.native:NativeBatch",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="train_replicas",
        backend="reference",
        device="any",
        kernel="lotterykit.training.batched:TorchBatch",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="train_scores",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.training.native:NativeScoreBatch",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="train_scores",
        backend="reference",
        device="any",
        kernel="lotterykit.training.batched_scores:TorchScoreBatch",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="synflow_scores",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.ops.synflow_scores:synflow_scores_cpu",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="synflow_scores",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.synflow_scores:synflow_scores_reference",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="synflow_masks",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.ops.synflow_masks:synflow_masks_cpu",
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="synflow_masks",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.synflow_masks:synflow_masks_reference",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="sparse_conv2d",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float32, torch.float64),
        kernel="lotterykit.ops.sparse_conv2d_native:sparse_conv2d_cpu",
        density=(0.0, 0.4),
        evidence="benchmarks/results/x86_64-avx2-routes.json",
    ),
    Route(
        op="sparse_conv2d",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.sparse_conv2d:sparse_conv2d_reference",
        evidence="plain torch, runs everywhere",
    ),
    Route(
        op="match_neurons",
        backend="cpu",
        device="cpu",
        dtypes=(torch.float64,),
        kernel="lotterykit.ops.match_neurons:match_neurons_cpu",
        evidence="benchmarks/results/x86_64-avx2-planting.json",
    ),
    Route(
        op="match_neurons",
        backend="reference",
        device="any",
        kernel="lotterykit.ops.match_neurons:match_neurons_reference",
        evidence="plain torch, runs everywhere",
    ),
)

# op -> module of its public function, where that is not lotterykit.ops.<op>
OWNERS = dict.fromkeys(("train_replicas", "train_scores"), "lotterykit.training.replicas")
