"""The reduced form of `make fuzz`, and that the fuzzer sees what it looks for."""

from __future__ import annotations

import os
import secrets
import sys

import broken_readers
import pytest
from hostile import fuzz, table
from readers import READERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are Linux's")


def test_damaged_files_are_refused_or_read_as_what_they_hold(tmp_path):
    seed = int(os.environ.get("LOTTERYKIT_TEST_SEED") or secrets.randbits(31))
    print(f"replay with LOTTERYKIT_TEST_SEED={seed}")
    outcomes = fuzz(list(READERS), 500, seed, tmp_path)
    print(table(outcomes))
    assert {name: outcome.failed for name, outcome in outcomes.items() if outcome.failed} == {}
    for name, outcome in outcomes.items():
        assert outcome.loaded + outcome.refused == 500, name
        assert outcome.refused > 100, name
    assert outcomes["tickets"].refused > 450


SEEN = {
    "crash": "the process ended by signal 6",
    "loop": "more processor time than a mutant may take",
    "loop_in_c": "the process ended by signal 26",
    "take_more_than_there_is": "MemoryError",
    "take_much": "200 MiB of memory for a file of 1 bytes",
    "hide_what_was_taken": "memory beyond the limit was asked for",
    "raise_another_error": "KeyError: 'content'",
    "say_two_lines": "not one line of at most",
    "load_something_else": "AssertionError: not what was saved",
}


def test_the_fuzzer_sees_what_a_broken_reader_does(tmp_path):
    assert SEEN.keys() == broken_readers.READERS.keys()
    outcomes = fuzz(list(SEEN), 4, 0, tmp_path, registry="broken_readers", seconds=0.2)
    for name, why in SEEN.items():
        assert list(outcomes[name].failed) == [2], name
        assert why in outcomes[name].failed[2]
        assert outcomes[name].refused == 3 or name in ("crash", "loop_in_c")  # which take the counts along
        assert (tmp_path / f"{name}-0-2").read_bytes() == b"2"
