"""One thread a test process: the processes of pytest-xdist share the cores. Tests of threads ask for more."""

from __future__ import annotations

import os
import signal
import threading

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell starts background jobs with SIGINT ignored, and what ignores it would hand that on to the processes
# whose Ctrl-C is tested.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
