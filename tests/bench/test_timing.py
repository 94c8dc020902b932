import time

from lotterykit.bench.timing import measure, rotations


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
