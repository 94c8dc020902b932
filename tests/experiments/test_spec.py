"""Tests of `lotterykit.experiments.spec`."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from pathlib import Path

import pytest

from lotterykit.errors import ArgumentError
from lotterykit.experiments.grid import Grid, load_toml
from lotterykit.experiments.spec import (
    LADDER,
    METHODS,
    RESULTS_VERSION,
    CellSpec,
    derive_seed,
    group,
)

BASE = {"task": "circle", "method": "snip", "density": 0.1}


def test_key_is_pinned_so_that_stored_rows_stay_found():
    assert RESULTS_VERSION == 2
    assert CellSpec(**BASE).key() == "ca3b86f583b27b44d8486d20869d2d0f9ceb4b8b45eabe5ebdeea6886d67b2b5"


def test_default_fields_do_not_change_the_key():
    cell = CellSpec(**BASE)
    assert CellSpec(**cell.model_dump()).key() == cell.key()
    assert CellSpec(**BASE, gain=1).key() == cell.key()


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"density": 0.2}, {"density": "truth"}, {"gain": 0.0}, {"invert": True}, {"lr": 0.01}],
)
def test_any_other_value_changes_the_key(change):
    assert CellSpec(**{**BASE, **change}).key() != CellSpec(**BASE).key()


def test_key_depends_on_the_results_version(monkeypatch):
    before = CellSpec(**BASE).key()
    monkeypatch.setattr("lotterykit.experiments.spec.RESULTS_VERSION", 99)
    assert CellSpec(**BASE).key() != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "snipp"}, "did you mean 'snip'"),
        ({"task": "cirle"}, "did you mean 'circle'"),
        ({"widht": 3}, "did you mean 'width'"),
        ({"pipeline": "multishot"}, "did you mean 'multi-shot'"),
        ({"density": 0}, r"must lie in \(0, 1\], got 0"),
        ({"density": 1.5}, "got 1.5"),
        ({"density": float("nan")}, "got nan"),
        ({"density": "thruth"}, "got 'thruth'"),
        ({"density": True}, "got True"),
        ({"depth": 2}, "depth must be greater than or equal to 3, got 2"),
        ({"depth": "5"}, "depth must be a valid integer, got '5'"),
        ({"gain": 2}, "gain must be less than or equal to 1, got 2"),
        ({"seed": -1}, "got -1"),
        ({"lr": float("inf")}, "got inf"),
        ({"noise": 2.0}, "got 2.0"),
        ({"method": "oracle"}, 'must be "truth"'),
        ({"shots": 3}, 'pipeline "multi-shot" only'),
        ({"score_epochs": 3}, 'pipeline "edge-popup" only'),
        ({"method": "edge-popup"}, 'pipeline "edge-popup" takes the methods'),
        ({"pipeline": "edge-popup"}, "got snip in pipeline"),
        ({"method": "edge-popup", "pipeline": "edge-popup", "rounds": 2}, "rounds is for scores that prune"),
        ({"method": "oracle-neurons"}, 'density must be "truth"'),
        ({"method": "oracle-neurons", "density": "truth", "rounds": 2}, "searches nothing"),
        ({"planted": False, "gain": 0.0}, "plants none"),
        ({"planted": False, "method": "oracle", "density": "truth"}, "planted must be true"),
        ({"noise": 1e308, "task": "relu"}, "noise must be less than or equal to 1000000"),
        ({"lr": 1e308}, "lr must be less than or equal to"),
    ],
)
def test_bad_values_are_one_clear_line(change, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        CellSpec(**{**BASE, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("width", 10**5), ("depth", 1000), ("samples", 10**8), ("batch_size", 10**6), ("epochs", 10**6),
        ("rounds", 10**6), ("shots", 10**6), ("shot_epochs", 10**6),
    ],
)  # fmt: skip
def test_every_count_has_a_limit(name, most):
    multi = {**BASE, "pipeline": "multi-shot"}
    assert getattr(CellSpec(**{**multi, name: most}), name) == most
    for more in (most + 1, 10**30):
        with pytest.raises(ArgumentError, match=f"{name} must be less than or equal to {most}"):
            CellSpec(**{**multi, name: more})
    integers = {n for n, field in CellSpec.model_fields.items() if field.annotation is int}
    assert integers == {"seed", "width", "depth", "samples", "batch_size", "epochs", "rounds", "shots",
                        "shot_epochs", "score_epochs"}  # fmt: skip


def test_missing_fields_are_named():
    with pytest.raises(ArgumentError, match="method is missing"):
        CellSpec(task="circle")


def test_cells_are_frozen_hashable_and_picklable():
    cell = CellSpec(**BASE)
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert {cell: 1}[CellSpec(**BASE)] == 1
    with pytest.raises(ValueError, match="frozen"):
        cell.seed = 3


def test_grid_adds_one_oracle_row_a_seed_and_setting():
    grid = {
        "task": ["circle", "helix"],
        "method": list(METHODS),
        "density": [0.1, "truth"],
        "gain": [0.0, 1.0],
    }
    cells = Grid(grid=grid, seeds=3).cells()
    oracles = [cell for cell in cells if cell.method == "oracle"]
    assert len(oracles) == 2 * 2 * 3
    assert len(cells) == 2 * len(METHODS) * 2 * 2 * 3 + len(oracles) == len({cell.key() for cell in cells})
    assert all(cell.density == "truth" for cell in oracles)
    assert not [c for c in Grid(grid=grid, seeds=3, oracle=False).cells() if c.method == "oracle"]


def test_the_oracle_is_one_for_all_searches():
    """Settings of the search do not multiply it, those of the planting, the data and the training do."""
    search = {"scope": ["global", "local"], "rounds": [1, 100], "invert": [False, True]}
    shots = {"shots": [5, 10], "shot_epochs": [2, 5], "reset": ["init", "never", "not-last"]}
    for base, grid in ((BASE, search), ({**BASE, "pipeline": "multi-shot"}, search | shots)):
        cells = Grid(spec=base, grid=grid, seeds=2).cells()
        oracles = [cell for cell in cells if cell.method == "oracle"]
        assert [cell.seed for cell in oracles] == [0, 1]
        assert {cell.pipeline for cell in oracles} == {base.get("pipeline", "single-shot")}
        asked = Grid(spec={**base, "method": "oracle"}, grid=grid, seeds=2).cells()
        assert asked == oracles
    for other in ({"noise": [0.0, 0.1]}, {"epochs": [1, 2]}, {"gain": [0.0, 1.0]}, {"init": ["he_scaled",
                  "signed_constant"]}):  # fmt: skip
        assert len([c for c in Grid(spec=BASE, grid=other).cells() if c.method == "oracle"]) == 2


def test_a_grid_of_rungs_and_of_unplanted_mothers():
    known = {"method": [*LADDER, "snip"], "density": [0.1, "truth"], "rounds": [1, 100]}
    cells = Grid(spec={"task": "circle"}, grid=known).cells()
    assert sorted(c.method for c in cells) == sorted([*LADDER, *["snip"] * 4, "oracle"])
    cells = Grid(spec=BASE, grid={"planted": [True, False]}).cells()
    assert [(c.method, c.planted) for c in cells] == [("snip", True), ("oracle", True), ("snip", False)]


def test_an_oracles_dropped_settings_must_be_good_all_the_same():
    with pytest.raises(ArgumentError, match="rounds must be"):
        Grid(spec={"task": "circle", "method": "oracle", "rounds": 0}).cells()


def test_grid_of_both_pipelines_keeps_multi_shot_settings_to_multi_shot():
    spec = {**BASE, "pipeline": ["single-shot", "multi-shot"], "shots": [2, 3]}
    cells = Grid(spec=spec, oracle=False).cells()
    assert sorted((c.pipeline, c.shots) for c in cells) == [
        ("multi-shot", 2), ("multi-shot", 3), ("single-shot", 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"spec": {**BASE, "metod": 1}}, "did you mean 'method'"),
        ({"spec": BASE, "seeds": 0}, "seeds"),
        ({"spec": BASE, "seeds": True}, "seeds"),
        ({"spec": BASE, "seeds": [1, -1]}, "got -1"),
        ({"spec": {**BASE, "density": []}}, "density has no value"),
        ({"spec": {**BASE, "seed": list(range(2000)), "width": list(range(1, 2000))}}, "at most"),
        ({"spec": BASE, "seed": 2}, "did you mean 'seeds'"),
        ({"spec": 3}, "spec must be"),
        ({"spec": {**BASE, "seeds": 3}}, "seeds belongs at the top"),
        ({"spec": BASE, "grid": {"oracle": False}}, "oracle belongs at the top"),
    ],
)
def test_bad_grids_are_refused(values, says):
    with pytest.raises(ArgumentError, match=says):
        Grid(**values).cells()


def test_toml_round_trip(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        'seeds = [4, 7]\n[spec]\ntask = "relu"\n[grid]\nmethod = ["snip"]\ndensity = [1, 0.1, "truth"]\n'
    )
    cells = load_toml(path).cells()
    assert {c.seed for c in cells} == {4, 7}
    assert len(cells) == 2 * (3 + 1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seeds = [", "not valid TOML"),
        (b"\xff\xfe\x00", "not valid TOML"),
        (b"sed = 3", "did you mean 'seeds'"),
        (b"[spec]\ntask='circle'\nmethod='snip'\ndensity=7\n", "got 7"),
        (b"[spec]\ntask={a=1}\nmethod='snip'\ndensity=.7\n", "not valid TOML"),
        (b"[spec]\ntask={a=1}\nmethod='snip'\ndensity=0.7\n", "unknown task"),
        (b"[spec]\ntask=1979-05-27\nmethod='snip'\ndensity=0.7\n", "unknown task"),
        (b"[spec]\nseeds=3\n", "seeds belongs at the top"),
        (b"[grid]\nrounds=[1, 0]\n", "rounds must be"),
        (b"seeds = 0\n", "seeds is how many"),
        (b"a=" + b"[" * 50_000, "not valid TOML"),
        (b"#" * (2 << 20), "larger than"),
    ],
)
def test_bad_toml_is_one_line_with_the_file_name(tmp_path, content, says):
    path = tmp_path / "s.toml"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=says) as caught:
        load_toml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toml_may_leave_to_flags_what_is_missing(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('[spec]\nshots = 3\ndensity = [0.1, "truth"]\nmethod = ["oracle", "snip"]\nnoise = 2\n')
    grid = load_toml(path)
    with pytest.raises(ArgumentError, match="task is missing"):
        grid.cells()
    assert Grid(spec=grid.spec, grid={"task": "relu", "pipeline": "multi-shot"}).cells()


def test_toml_that_is_missing_or_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / "no.toml"):
        with pytest.raises(ArgumentError, match=str(path)):
            load_toml(path)


def test_mutated_toml_never_raises_anything_else(tmp_path):
    good = b'seeds = 2\n[spec]\ntask = "relu"\ndepth = 5\n[grid]\nmethod = ["snip"]\ndensity = [1, "truth"]\n'
    rng, path = random.Random(0), tmp_path / "s.toml"
    for _ in range(300):
        text = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        path.write_bytes(text)
        with contextlib.suppress(ArgumentError):
            load_toml(path).cells()


def test_derived_seeds_are_stable_and_differ_by_role():
    found = [derive_seed(seed, role) for seed in range(100) for role in ("data", "init")]
    assert found[0] == 2822939810359331194
    assert len(set(found)) == 200
    assert all(0 <= seed < 2**63 for seed in found)


def test_dear_cells_come_in_smaller_batches():
    cells = Grid(spec={**BASE, "width": [50, 100]}, seeds=20, oracle=False).cells()
    found = group(cells, 16, most=lambda cell: 0 if cell.width == 100 else 99)
    sizes = {width: [len(b) for b in found if b[0].width == width] for width in (50, 100)}
    assert sizes == {50: [10, 10], 100: [1] * 20}


def test_batches_share_shape_and_recipe_and_lose_nothing():
    grid = {
        "task": ["circle", "relu"], "method": list(METHODS), "density": [0.1, "truth"],
        "pipeline": "multi-shot", "reset": ["init", "never"], "width": [50, 100],
    }  # fmt: skip
    cells = Grid(grid=grid, seeds=4).cells()
    batches = group(cells, 16)
    assert batches == group(cells, 16)
    assert sorted(c.key() for b in batches for c in b) == sorted(c.key() for c in cells)
    for batch in batches:
        assert 1 <= len(batch) <= 16
        assert len({(c.task, c.width, c.reset, c.recipe_key()) for c in batch}) == 1
        assert batch == sorted(batch, key=lambda c: c.seed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a." * 400_000 + "a = 1", "a key of more than 16 parts"),  # tomllib takes the square of its length
        ("[" + '"a b" . ' * 100_000 + "a]", "a key of more than 16 parts"),
        ("x = " + "[" * 40 + "]" * 40, "nested more than 16 deep"),
        ("x = " + "{a = " * 40 + "1" + "}" * 40, "nested more than 16 deep"),
        ("seeds = 0x" + "f" * 100_000, "TOML has integers of 64 bits, got an integer of 400000 bits"),
        ("seeds = " + "9" * 100_000, "not valid TOML: Exceeds the limit"),
        ("seeds = [9223372036854775808]", "64 bits, got 9223372036854775808"),
        ("self = 1", "unknown key 'self'"),
        ('[spec]\ntask = "' + "x" * 100_000 + '"', "unknown task 'xxx"),
        ("[spec]\nwidth = [" + "[1]," * 50_000 + "]", "width must be a valid integer, got \\[1\\]"),
    ],
    ids=range(10),
)
def test_hostile_toml_is_refused_in_one_short_line(tmp_path, text, says):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=says) as caught:
        load_toml(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_what_is_no_regular_file_is_no_specification(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ArgumentError, match=f"{path}: no regular file"):
            load_toml(path)


def test_dots_in_values_are_no_long_key(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(f"[grid]\ndensity = [{', '.join(f'0.{i}' for i in range(1, 60))}]\n")
    assert len(load_toml(path).grid["density"]) == 59
