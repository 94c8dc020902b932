"""Fresh random inputs in every run, and the seed that brings a red one back."""

from __future__ import annotations

import os
import secrets

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> int:
    """The seed of this test, in torch's global generator too. pytest shows it with a failure."""
    number = int(os.environ.get("LOTTERYKIT_TEST_SEED") or secrets.randbits(31))
    print(f"replay with LOTTERYKIT_TEST_SEED={number}")
    torch.manual_seed(number)
    return number
