from __future__ import annotations

from pathlib import Path

import pytest

from lotterykit.data import find
from lotterykit.errors import ArgumentError


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the real Fashion-MNIST, which `make data` fetches."""
    try:
        folder = find("fashion-mnist")
    except ArgumentError as error:
        pytest.skip(str(error))
    assert folder is not None
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """An empty folder, on a machine where no data lie anywhere else."""
    monkeypatch.delenv("LOTTERYKIT_DATA", raising=False)
    monkeypatch.setattr("lotterykit.data.images.DEBIAN", tmp_path / "debian")
    root = tmp_path / "root"
    root.mkdir()
    return root
