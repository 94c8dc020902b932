"""Python in a process of its own where Triton's interpreter runs the kernels, and generated cases in it."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def interpret(*arguments, check=True):
    """The finished process of Python with these arguments; with `check` it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def assert_cases_pass(script, ops, cases):
    """Run a new draw of `cases` cases of each of a script's `ops`; none may fail."""
    seed = secrets.randbits(31)
    out = interpret(str(HERE / script), str(cases), str(seed)).stdout
    clean = {op: {"cases": cases, "failures": []} for op in ops}
    assert json.loads(out.splitlines()[-1]) == clean, f"seed {seed}"
