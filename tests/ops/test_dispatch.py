"""Dispatch: every refusal has one reason, a force never falls back silently, a mistake names the nearest."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from lotterykit.errors import ArgumentError, BackendError
from lotterykit.ops import dispatch
from lotterykit.ops.dispatch import Call, Route, explain, forced_backend, select, use_backend
from lotterykit.ops.routes import ROUTES
from lotterykit.ops.topk_mask import topk_mask

CALL = Call("topk_mask", "cpu", torch.float32)
ROUTE = Route(
    op="topk_mask",
    backend="reference",
    device="cpu",
    kernel="lotterykit.ops.topk_mask:topk_mask_reference",
    evidence="a test",
    dtypes=(torch.float32, torch.float64),
    density=(0.01, 0.1),
)


@pytest.fixture(autouse=True)
def _no_force(monkeypatch):
    monkeypatch.delenv("LOTTERYKIT_BACKEND", raising=False)


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.op}-{r.backend}")
def test_every_row_names_a_backend_and_a_loadable_kernel(route):
    assert route.backend in dispatch.BACKENDS
    assert route.device in ("any", "cpu", "cuda")
    assert 0 <= route.density[0] <= route.density[1] <= 1
    if dispatch.missing("triton") is None or route.backend != "triton":
        assert dispatch.load(route) is not None


@pytest.mark.parametrize("op", sorted({r.op for r in ROUTES}))
def test_the_last_row_of_every_op_is_a_reference_that_refuses_nothing(op):
    last = [r for r in ROUTES if r.op == op][-1]
    assert (last.backend, last.device, last.dtypes) == ("reference", "any", ())
    assert last.refusal(Call(op, "xpu", torch.float16, 0.5)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"device": "cuda"}, "needs cpu tensors, got cuda"),
        ({"dtype": torch.float16}, "needs dtype float32, float64, got float16"),
        ({"density": 0.5}, "serves density 0.01 to 0.1, got 0.5"),
        ({"density": 0.1}, None),
    ],
)
def test_a_refusal_gives_one_reason(change, reason):
    assert ROUTE.refusal(dataclasses.replace(CALL, **change)) == reason


def test_forcing_lifts_the_density_band_and_nothing_else():
    assert ROUTE.refusal(dataclasses.replace(CALL, density=0.5), forced=True) is None
    assert "float16" in ROUTE.refusal(dataclasses.replace(CALL, dtype=torch.float16), forced=True)


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.op}-{r.backend}")
def test_evidence_is_a_file_or_a_reason_and_a_row_without_any_serves_only_when_forced(route, monkeypatch):
    monkeypatch.setattr(dispatch, "missing", lambda backend: None)
    call = Call(route.op, "cuda", route.dtypes[-1] if route.dtypes else torch.bfloat16, 0.1)
    if route.evidence is None:
        wanted = f"not yet measured, so it must be asked for: use_backend('{route.backend}')"
        assert route.refusal(call) == wanted
        assert route.refusal(call, forced=True) is None
    elif route.evidence.startswith("benchmarks/"):
        assert (Path(__file__).parents[2] / route.evidence).is_file()


def test_a_missing_backend_is_a_reason(monkeypatch):
    monkeypatch.setattr(dispatch, "missing", lambda backend: f"{backend} is not here")
    assert ROUTE.refusal(CALL) == "reference is not here"


def test_use_backend_nests_and_restores():
    assert forced_backend("topk_mask") is None
    with use_backend("cpu"):
        assert forced_backend("topk_mask") == "cpu"
        with use_backend("reference", ops=["topk_mask"]):
            assert forced_backend("topk_mask") == "reference"
            assert forced_backend("masked_linear") == "cpu"
            with use_backend("auto"):
                assert forced_backend("topk_mask") is None
                assert forced_backend("masked_linear") is None
            assert forced_backend("topk_mask") == "reference"
        assert forced_backend("topk_mask") == "cpu"
    assert forced_backend("topk_mask") is None
    with pytest.raises(ZeroDivisionError), use_backend("cpu"):
        _ = 1 / 0
    assert forced_backend("topk_mask") is None


def test_the_environment_forces_and_use_backend_overrides_it(monkeypatch):
    monkeypatch.setenv("LOTTERYKIT_BACKEND", "reference")
    assert select(CALL).backend == "reference"
    with use_backend("cuda"):
        assert forced_backend("topk_mask") == "cuda"
    with use_backend("auto"):
        assert forced_backend("topk_mask") is None
    monkeypatch.setenv("LOTTERYKIT_BACKEND", "refrence")
    with pytest.raises(ArgumentError, match="did you mean 'reference'"):
        select(CALL)


def test_a_forced_backend_that_cannot_serve_raises_with_a_reason_for_each_row():
    with use_backend("cuda"), pytest.raises(BackendError) as caught:
        topk_mask([torch.ones(3)], k=1)
    text = str(caught.value)
    assert "backend 'cuda' was forced but cannot serve on cpu, float32" in text
    assert "cuda: needs cuda tensors, got cpu" in text
    assert "reference: 'cuda' is forced" in text
    assert len(text.splitlines()) == 1 + sum(r.op == "topk_mask" for r in ROUTES)


def test_an_error_inside_a_kernel_propagates(monkeypatch):
    def broken(*args, **kwargs):
        raise MemoryError("inside the kernel")

    # By sys.modules: the package may hand out the function under the module's name.
    monkeypatch.setattr(sys.modules["lotterykit.ops.topk_mask"], "load", lambda route: broken)
    with pytest.raises(MemoryError, match="inside the kernel"):
        topk_mask([torch.ones(3)], k=1)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ArgumentError, match="did you mean 'triton'"), use_backend("trition"):
        pass
    with pytest.raises(ArgumentError, match="did you mean 'topk_mask'"), use_backend("cpu", ops=["topkmask"]):
        pass
    with pytest.raises(ArgumentError, match="did you mean 'topk_mask'"):
        explain("topk_maks", [torch.ones(3)], k=1)
    with pytest.raises(ArgumentError, match="op must be a name"):
        explain(topk_mask, [torch.ones(3)], k=1)


def test_explain_tells_of_every_row_and_follows_select():
    lines = explain("topk_mask", [torch.ones(3)], k=1).splitlines()
    assert lines[0] == "topk_mask on cpu, float32"
    assert len(lines) == 1 + sum(r.op == "topk_mask" for r in ROUTES)
    chosen = [line for line in lines if ": chosen (" in line]
    assert len(chosen) == 1
    assert chosen[0].strip().startswith(select(CALL).backend)
    with use_backend("reference"):
        assert "reference: chosen" in explain("topk_mask", [torch.ones(3)], k=1)
    with use_backend("triton"):
        assert "no backend can serve" in explain("topk_mask", [torch.ones(3)], k=1)


@pytest.mark.parametrize(
    ("code", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_80", (7, 5), False),
        ("sm_80", (9, 0), False),
        ("sm_86", (8, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_100", (10, 3), True),
        ("sm_100", (12, 0), False),
        ("compute_90", (9, 0), True),
        ("compute_90", (12, 1), True),
        ("compute_100", (9, 0), False),
        ("compute_90a", (10, 0), False),
    ],
)
def test_which_code_runs_where(code, capability, runs):
    assert dispatch.runs_on(code, capability) is runs


def test_a_device_that_the_module_was_not_built_for_is_a_reason(monkeypatch):
    module = types.ModuleType("lotterykit._cuda")
    module.CODE = ["sm_80", "sm_90a", "compute_90"]
    monkeypatch.setitem(sys.modules, "lotterykit._cuda", module)
    monkeypatch.setattr(dispatch, "_module_missing", lambda backend, name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capabilities = [(8, 6), (12, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert dispatch.missing.__wrapped__("cuda") is None
    capabilities[1] = (7, 5)
    reason = dispatch.missing.__wrapped__("cuda")
    assert "sm_80, sm_90a, compute_90, none of which runs on cuda:1 (sm_75;" in reason


def test_backends_lists_all_with_reasons():
    found = dispatch.backends()
    assert tuple(found) == dispatch.BACKENDS
    assert found["reference"] is None
    assert all(reason is None or "\n" not in reason for reason in found.values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            json.dumps({"cpu": {"built": False, "reason": "no C++ compiler was found"}}),
            "no C++ compiler was found",
        ),
        (json.dumps({"cpu": {"built": True, "reason": None}}), "built, but for another Python"),
        ("{", "not installed by its setup.py"),
        ("[]", "not installed by its setup.py"),
        (None, "not installed by its setup.py"),
    ],
)
def test_a_module_that_was_not_built_says_why(tmp_path, monkeypatch, text, reason):
    report = tmp_path / "report.json"
    if text is not None:
        report.write_text(text)
    monkeypatch.setattr(dispatch, "BUILD_REPORT", report)
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    dispatch.missing.cache_clear()
    try:
        assert reason in dispatch.missing("cpu")
        assert dispatch.missing("cpu").startswith("lotterykit._cpu is not built: ")
    finally:
        dispatch.missing.cache_clear()
