"""One thread a test process: the processes of pytest-xdist share the cores. Tests of threads ask for more."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
