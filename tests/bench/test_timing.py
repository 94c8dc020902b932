import contextlib
import time

from lotterykit.bench.timing import TURN, alternate, measure, rotations


def test_measures_the_median_in_microseconds_and_takes_inputs_in_turn():
    seen = []

    def work(number):
        seen.append(number)
        time.sleep(0.002)

    timing = measure(work, [(1,), (2,), (3,)], seconds=0.05)
    assert timing.p20 <= timing.median <= timing.p80
    assert timing.median >= 2000
    assert 5 <= timing.repeats <= 200
    assert seen[:6] == [1, 2, 3, 1, 2, 3]
    assert timing.as_dict()["repeats"] == timing.repeats


def test_rotations_exceed_the_cache():
    assert rotations(500, 1000) * 500 > 3000
    assert rotations(10**9, 100) == 2
    assert rotations(1, 10**9) == 16


def test_functions_take_turns_until_each_has_its_repeats():
    calls = []
    open_now = []

    @contextlib.contextmanager
    def around(name):
        open_now.append(name)
        yield
        open_now.remove(name)

    def work(name):
        assert open_now == [name]
        calls.append(name)

    functions = {name: lambda name=name: work(name) for name in "ab"}
    timings = alternate(functions, repeats=2 * TURN + 1, around=around)
    assert {name: timing.repeats for name, timing in timings.items()} == {"a": 11, "b": 11}
    assert "".join(calls) == ("a" * (TURN + 1) + "b" * (TURN + 1)) * 2 + "aabb"


def test_cpu_time_leaves_out_what_others_take():
    waits = {"waits": lambda: time.sleep(0.02)}
    wall = alternate(waits, repeats=2)["waits"]
    assert alternate(waits, repeats=2, clock="cpu")["waits"].median < wall.median
    assert wall.each_of(4).median == wall.median / 4


def test_a_slow_function_stops_after_three_samples():
    timings = alternate({"slow": lambda: time.sleep(0.002), "fast": int}, repeats=20, seconds=0.001)
    assert timings["slow"].repeats == 3
    assert timings["fast"].repeats == 20
    assert timings["slow"].p20 <= timings["slow"].median <= timings["slow"].p80
