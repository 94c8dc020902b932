"""Every op with a Triton kernel, interpreted: 200 generated cases each, operands beside closed pages."""

import pytest
from interpreted import assert_cases_pass

from lotterykit.ops.routes import ROUTES

pytest.importorskip("triton", reason="triton is not installed")

# script -> its ops
SCRIPTS = {
    "masked_linear_cases.py": ["masked_linear"],
    "product_cases.py": ["masked_conv2d", "threshold_linear", "threshold_conv2d"],
    "multi_tensor_cases.py": ["masked_copies", "gem_miner_step"],
    "synflow_cases.py": ["synflow_scores", "synflow_masks"],
    "match_neurons_cases.py": ["match_neurons"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_case_differs_from_float64(script):
    assert_cases_pass(script, SCRIPTS[script], 200)


def test_no_op_is_left_out():
    served = {route.op for route in ROUTES if route.backend == "triton"}
    assert served == {op for ops in SCRIPTS.values() for op in ops}
