"""Controls: exact counts, what stays and what changes, the distributions drawn from, bitwise repeats."""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lotterykit.errors import ArgumentError
from lotterykit.experiments.controls import CONTROLS, Draw, allocated_counts, control
from lotterykit.experiments.ticket import Ticket
from lotterykit.mask import Masks, prunable_layers
from lotterykit.nn.models import mlp, network

SEED = int(os.environ.get("LOTTERYKIT_TEST_SEED") or secrets.randbits(31))
KINDS = list(CONTROLS)
MASK_KINDS = [kind for kind, row in CONTROLS.items() if row.mask is not None]
WEIGHT_KINDS = [kind for kind, row in CONTROLS.items() if row.weights is not None]
PERMUTATIONS = [kind for kind in KINDS if kind.startswith("permute")]
LATER = "500it"


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(7, 3),
    )  # fmt: skip


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state of `conv_net` whose weights, biases and batch-norm all depend on the seed."""
    g = torch.Generator().manual_seed(seed)
    state = conv_net().to(dtype).state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.randn(tensor.shape, generator=g, dtype=torch.float64).to(dtype)
    return state


def random_masks(state: dict[str, Tensor], names: list[str], g: torch.Generator) -> Masks:
    densities = torch.rand(len(names), generator=g).tolist()
    return Masks(
        {n: torch.rand(state[n].shape, generator=g) < d for n, d in zip(names, densities, strict=True)}
    )


def conv_ticket(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Ticket:
    """Masks of all weights and of one bias, at random densities; two snapshots."""
    g = torch.Generator().manual_seed(seed)
    states = {"init": drawn(seed + 1, dtype), LATER: drawn(seed + 2, dtype)}
    masks = random_masks(states["init"], ["0.weight", "3.weight", "3.bias", "6.weight"], g)
    made = {"masks": masks, "snapshots": states, "recipe": {"method": "imp"}, "results": {"accuracy": 0.9}}
    return Ticket(**(made | changes))


def mlp_ticket(widths: list[int], seed: int = 0, init: str = "kaiming_normal") -> Ticket:
    """A ticket with a recipe to draw from; its rewind point is the network of another seed."""
    g = torch.Generator().manual_seed(seed)
    states = {"init": mlp(widths, init=init, seed=seed), LATER: mlp(widths, init=init, seed=seed + 1)}
    snapshots = {label: dict(model.state_dict()) for label, model in states.items()}
    names = [name for name in snapshots["init"] if name.endswith("weight")]
    recipe = {"method": "imp", "network": "mlp", "widths": widths, "init": init, "seed": seed}
    return Ticket(random_masks(snapshots["init"], names, g), snapshots, recipe)


def options(ticket: Ticket, kind: str, draw: Draw | None = None) -> dict[str, Any]:
    """What `control` needs for a kind: a later point, a draw, a scale, even densities."""
    row, found = CONTROLS[kind], {"rewind": LATER}
    weights = ticket.masks.weights()
    total = sum(mask.numel() for mask in weights.values())
    needed = {
        "scale": 1.0,
        "densities": dict.fromkeys(weights, sum(k for k, _ in weights.counts().values()) / total),
    }
    if row.option is not None:
        found[row.option] = needed[row.option]
    return found | ({"draw": draw} if row.draws and draw is not None else {})


def both_tickets(seed: int) -> list[tuple[Ticket, Draw | None]]:
    return [(conv_ticket(seed), drawn), (mlp_ticket([6, 9, 7, 4], seed), None)]


def same_bits(a: Ticket, b: Ticket) -> bool:
    return a.digest() == b.digest()


@pytest.mark.parametrize("kind", KINDS)
def test_counts_names_dtypes_and_records(kind: str) -> None:
    print(f"replay with LOTTERYKIT_TEST_SEED={SEED}")
    for seed in range(SEED, SEED + 5):
        for ticket, draw in both_tickets(seed):
            given = options(ticket, kind, draw)
            before = ticket.digest()
            made = control(ticket, kind, seed=seed, **given)
            assert ticket.digest() == before, "the ticket is left alone"
            old, new = ticket.masks.counts(), made.masks.counts()
            assert list(new) == list(old)
            if kind == "allocation":
                assert sum(k for k, _ in new.values()) == sum(k for k, _ in old.values())
            else:
                assert new == old
            assert list(made.snapshots) == ["init"]
            state, start = made.snapshots["init"], ticket.snapshots[LATER]
            assert list(state) == list(start)
            for name, tensor in start.items():
                assert state[name].dtype == tensor.dtype
                assert state[name].shape == tensor.shape
                assert state[name].data_ptr() != tensor.data_ptr()
            assert made.results == {}
            record = made.recipe["control"]
            assert (record["kind"], record["seed"], record["rewind"], record["of"]) == (
                kind,
                seed,
                LATER,
                before,
            )
            assert {k: v for k, v in made.recipe.items() if k != "control"} == dict(ticket.recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_bitwise_repeats_and_another_seed(kind: str) -> None:
    ticket = mlp_ticket([30, 40, 10], 3)
    given = options(ticket, kind)
    first = control(ticket, kind, seed=1, **given)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert same_bits(first, control(ticket, kind, seed=1, **given))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    other = control(ticket, kind, seed=2, **given)
    alike = all(torch.equal(first.masks[n], other.masks[n]) for n in first.masks) and all(
        torch.equal(first.snapshots["init"][n], other.snapshots["init"][n]) for n in first.snapshots["init"]
    )
    assert alike == (kind in ("constant", "init-sign", "init-magnitude")), "nothing random in these three"


def test_a_layer_is_drawn_alike_whatever_stands_beside_it() -> None:
    ticket = conv_ticket(5)
    alone = Ticket(Masks({"3.weight": ticket.masks["3.weight"]}), ticket.snapshots, ticket.recipe)
    for kind in ("shuffle", "sign", "permute", "ticket-distribution"):
        all_, one = control(ticket, kind, seed=4), control(alone, kind, seed=4)
        assert torch.equal(all_.masks["3.weight"], one.masks["3.weight"])
        assert torch.equal(all_.snapshots["init"]["3.weight"], one.snapshots["init"]["3.weight"])


def test_layers_of_one_shape_are_drawn_apart() -> None:
    mask = torch.arange(60) < 30
    weight = torch.randn(60, generator=torch.Generator().manual_seed(1))
    ticket = Ticket(Masks({"a": mask, "b": mask}), {"init": {"a": weight, "b": weight}})
    for kind, given in (("shuffle", {}), ("noise", {"scale": 1.0}), ("sign", {}), ("permute", {})):
        made = control(ticket, kind, seed=0, **given)
        state = made.snapshots["init"]
        alike = torch.equal(made.masks["a"], made.masks["b"]) and torch.equal(state["a"], state["b"])
        assert not alike, kind


def test_allocation_moves_the_counts() -> None:
    """Masks of the counts asked for; a mask of biases keeps its own."""
    ticket = conv_ticket(SEED)
    densities = options(ticket, "allocation")["densities"]
    made = control(ticket, "allocation", seed=0, densities=densities)
    counts = {name: kept for name, (kept, _) in made.masks.counts().items()}
    biases = {"3.bias": ticket.masks.counts()["3.bias"][0]}
    assert counts == allocated_counts(ticket.masks.weights(), densities) | biases
    assert made.recipe["control"]["densities"] == densities


@pytest.mark.parametrize("kind", ["shuffle", "allocation"])
def test_mask_controls_keep_the_weights(kind: str) -> None:
    ticket = conv_ticket(SEED)
    given = options(ticket, kind)
    made = control(ticket, kind, seed=0, **given)
    for name, tensor in ticket.snapshots[LATER].items():
        assert torch.equal(made.snapshots["init"][name], tensor), name


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_weight_controls_change_kept_weights_alone(kind: str) -> None:
    ticket = conv_ticket(SEED)
    made = control(ticket, kind, seed=0, **options(ticket, kind, drawn))
    for name, tensor in ticket.snapshots[LATER].items():
        new = made.snapshots["init"][name]
        if name in ticket.masks:
            mask = ticket.masks[name]
            assert torch.equal(made.masks[name], mask)
            assert torch.equal(new[~mask], tensor[~mask]), name
        else:
            assert torch.equal(new, tensor), name


@pytest.mark.parametrize("kind", ["reinit", "random"])
def test_fresh_weights_come_whole_from_one_draw(kind: str) -> None:
    ticket = conv_ticket(2, torch.bfloat16)
    asked: list[int] = []

    def draw(seed: int) -> dict[str, Tensor]:
        asked.append(seed)
        masks = {"0.weight_mask": torch.ones(5, 2, 3, 3, dtype=torch.bool)}
        return drawn(seed, torch.float64) | masks

    made = control(ticket, kind, seed=0, draw=draw)
    assert len(asked) == 1
    assert asked[0] != 0, "the seed of the ticket's own weights may be the control's"
    for name, tensor in drawn(asked[0], torch.float64).items():
        new = made.snapshots["init"][name]
        assert torch.equal(new, tensor.to(new.dtype)), name
        assert new.dtype == ticket.snapshots["init"][name].dtype
    kept = all(torch.equal(made.masks[n], m) for n, m in ticket.masks.items())
    assert kept == (kind == "reinit")


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        (
            {"network": "mlp", "widths": [5, 30, 4], "init": "he_scaled"},
            lambda seed: mlp([5, 30, 4], init="he_scaled", seed=seed),
        ),
        (
            {"network": "mlp", "widths": [5, 30, 4], "init": "glorot_normal", "init_density": 0.25},
            lambda seed: mlp([5, 30, 4], init="glorot_normal", seed=seed, density=0.25),
        ),
        (
            {"network": "resnet-20", "input": [1, 8, 8], "classes": 4, "init": "signed_constant"},
            lambda seed: network("resnet-20", input=(1, 8, 8), classes=4, init="signed_constant", seed=seed),
        ),
        (
            {"network": "lenet", "input": [1, 5, 5], "dropout": 0.5, "init": "kaiming_normal"},
            lambda seed: network("lenet", input=(1, 5, 5), dropout=0.5, init="kaiming_normal", seed=seed),
        ),
    ],
)
def test_the_recipe_names_the_distribution(recipe: dict[str, Any], model: Any) -> None:
    """Re-initialised with the ticket's own seed: another network of the same distribution, that runs."""
    own = model(0)
    state = dict(own.state_dict())
    names = [f"{prefix}weight" for prefix, _ in prunable_layers(own)]
    masks = random_masks(state, names, torch.Generator().manual_seed(1))
    made = control(Ticket(masks, {"init": state}, recipe), "reinit", seed=0)
    for name in names:
        weight, new = state[name].double(), made.snapshots["init"][name].double()
        assert not torch.equal(weight, new)
        n = weight.numel()  # the variance of a normal sample errs by sqrt(2 / n): 6 of its deviations
        assert abs(float(new.square().mean() / weight.square().mean()) - 1) < 6 * 2 * (1 / n) ** 0.5
    for name, tensor in state.items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(made.snapshots["init"][name], tensor), name
    fresh = model(5)
    made.apply_(fresh)
    assert Masks.from_model(fresh).weights().counts() == masks.counts()


def test_shuffles_are_uniform() -> None:
    """Each place of a layer is kept equally often; binomial, within 6 standard deviations."""
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[0] = True
    ticket = Ticket(Masks({"w": mask}), {"init": {"w": torch.arange(20.0).view(4, 5)}})
    runs = 1200
    hits = sum(control(ticket, "shuffle", seed=s).masks["w"].double() for s in range(runs))
    assert float((hits / runs - 0.25).abs().max()) < 6 * (0.25 * 0.75 / runs) ** 0.5


def wide_ticket(n: int = 40_000, dtype: torch.dtype = torch.float64) -> Ticket:
    g = torch.Generator().manual_seed(SEED)
    states = {k: {"w": torch.randn(n // 100, 100, generator=g, dtype=dtype) * 0.3} for k in ("init", LATER)}
    return Ticket(Masks({"w": torch.rand(n // 100, 100, generator=g) < 0.5}), states)


@pytest.mark.parametrize("scale", [0.5, 1, 2, 3])
def test_noise_is_gaussian_of_the_layers_scale(scale: float) -> None:
    ticket = wide_ticket()
    mask, before = ticket.masks["w"], ticket.snapshots["init"]["w"]
    made = control(ticket, "noise", seed=SEED, scale=scale)
    noise = (made.snapshots["init"]["w"] - before)[mask] / (scale * before.std(correction=0))
    n = noise.numel()
    assert abs(float(noise.mean())) < 6 / n**0.5
    assert abs(float(noise.square().mean()) - 1) < 6 * (2 / n) ** 0.5
    assert abs(float((noise.abs() < 1).double().mean()) - 0.6827) < 6 * (0.22 / n) ** 0.5
    assert abs(float((noise * before[mask]).mean() / before.std())) < 6 / n**0.5
    assert made.recipe["control"]["scale"] == scale


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_matter(kind: str) -> None:
    """On a tensor that torch reduces in parallel."""
    ticket = wide_ticket(200_000)
    fresh = wide_ticket(200_000, torch.float32).snapshots["init"]
    given = options(ticket, kind, lambda seed: fresh)
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            made.append(control(ticket, kind, seed=1, **given))
        finally:
            torch.set_num_threads(threads)
    assert same_bits(made[0], made[1])
    assert same_bits(made[0], made[2])


def test_noise_is_measured_by_the_initialisation_at_any_rewind_point() -> None:
    ticket = wide_ticket()
    states = {"init": ticket.snapshots["init"], LATER: {"w": ticket.snapshots[LATER]["w"] * 50}}
    ticket = Ticket(ticket.masks, states)
    made = control(ticket, "noise", seed=0, scale=1.0, rewind=LATER)
    noise = (made.snapshots["init"]["w"] - states[LATER]["w"])[ticket.masks["w"]]
    assert float(noise.std() / states["init"]["w"].std()) == pytest.approx(1, abs=0.05)


def test_signs_and_magnitudes() -> None:
    ticket = wide_ticket(dtype=torch.float32)
    mask, init, later = ticket.masks["w"], ticket.snapshots["init"]["w"], ticket.snapshots[LATER]["w"]
    n = int(mask.sum())

    def kept(kind: str, **given: Any) -> Tensor:
        return control(ticket, kind, seed=3, rewind=LATER, **given).snapshots["init"]["w"][mask]

    signs = kept("sign")
    assert torch.equal(signs.abs(), later[mask].abs())
    assert abs(float((signs.sign() * later[mask].sign()).mean())) < 6 / n**0.5
    constant = kept("constant")
    assert torch.equal(constant.sign(), later[mask].sign())
    assert constant.abs().unique().numel() == 1
    assert float(constant[0].abs()) == pytest.approx(float(init.double().std(correction=0)), rel=1e-6)
    fresh = torch.randn(init.shape, generator=torch.Generator().manual_seed(1)).abs() + 5
    assert torch.equal(kept("magnitude", draw=lambda seed: {"w": fresh}), fresh[mask].copysign(later[mask]))
    assert torch.equal(kept("init-sign"), later[mask].abs().copysign(init[mask]))
    assert torch.equal(kept("init-magnitude"), init[mask].abs().copysign(later[mask]))


@pytest.mark.parametrize("kind", PERMUTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_permutations_hold_the_same_weights_within_their_groups(kind: str, dtype: torch.dtype) -> None:
    for seed in range(SEED, SEED + 4):
        ticket = conv_ticket(seed, dtype)
        made = control(ticket, kind, seed=seed)
        for name, mask in ticket.masks.items():
            old, new = ticket.snapshots["init"][name], made.snapshots["init"][name]
            assert torch.equal(old[mask].sort().values, new[mask].sort().values)
            if kind.endswith("sign"):
                assert torch.equal(old[mask].signbit(), new[mask].signbit())
            if "filter" in kind:
                for o, n, m in zip(old, new, mask, strict=True):
                    assert torch.equal(o[m].sort().values, n[m].sort().values)


def test_permutations_are_uniform_within_their_groups() -> None:
    """Two filters of three kept weights: each of the 3! orders of a filter equally often."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 6.0, 0.0]])
    ticket = Ticket(Masks({"w": weight > 0}), {"init": {"w": weight}})
    runs, seen = 1200, {}
    for seed in range(runs):
        row = control(ticket, "permute-filter", seed=seed).snapshots["init"]["w"][1, :3]
        seen[tuple(row.tolist())] = seen.get(tuple(row.tolist()), 0) + 1
    assert set(seen) == set(itertools.permutations([4.0, 5.0, 6.0]))
    bound = 6 * (1 / 6 * 5 / 6 / runs) ** 0.5
    assert all(abs(count / runs - 1 / 6) < bound for count in seen.values())
    across = {float(control(ticket, "permute", seed=s).snapshots["init"]["w"][0, 0]) for s in range(100)}
    assert across == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}


def test_the_tickets_distribution() -> None:
    """Sampled with repetition from the layer's kept weights: only those, each equally often."""
    ticket = wide_ticket()
    mask, weight = ticket.masks["w"], ticket.snapshots["init"]["w"]
    new = control(ticket, "ticket-distribution", seed=SEED).snapshots["init"]["w"][mask]
    assert bool(torch.isin(new, weight[mask]).all())
    n = new.numel()
    share = new.unique().numel() / n
    assert abs(share - (1 - 2.718281828**-1)) < 6 * (0.25 / n) ** 0.5, "with repetition"
    assert abs(float(new.mean() - weight[mask].mean())) < 6 * float(weight[mask].std()) / n**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_full_and_empty_layers(kind: str) -> None:
    """Density 0 and 1, and a tensor of one weight, are no trouble."""
    ticket = conv_ticket(1)
    shapes = {name: mask.shape for name, mask in ticket.masks.items()}
    masks = {name: torch.full(shape, name != "3.weight") for name, shape in shapes.items()}
    ticket = Ticket(Masks(masks), ticket.snapshots)
    given = options(ticket, kind, drawn)
    if kind == "allocation":
        given["densities"] = {"0.weight": 1.0, "3.weight": 0.0, "6.weight": 1.0}
    made = control(ticket, kind, seed=0, **given)
    assert all(torch.equal(made.masks[name], mask) for name, mask in masks.items())
    one = {"w": torch.tensor([[0.5]])}
    tiny = Ticket(Masks({"w": torch.tensor([[True]])}), {"init": one, LATER: one})
    given = options(tiny, kind, lambda seed: {"w": torch.tensor([[0.25]])})
    assert bool(control(tiny, kind, seed=0, **given).masks["w"].all())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_without_entries(kind: str) -> None:
    state = {"a": torch.ones(0, 3), "b": torch.tensor([[1.0, -2.0, 3.0]])}
    masks = Masks({"a": torch.ones(0, 3, dtype=torch.bool), "b": torch.tensor([[True, False, True]])})
    ticket = Ticket(masks, {"init": state, LATER: state})
    fresh = {"a": torch.ones(0, 3), "b": torch.tensor([[4.0, 5.0, 6.0]])}
    made = control(ticket, kind, seed=0, **options(ticket, kind, lambda seed: fresh))
    assert made.masks.counts() == {"a": (0, 0), "b": (2, 3)}


def test_changed_counts_kept_weights_of_another_place_or_value() -> None:
    mask = torch.tensor([[True, True, False, False]])
    state = {"w": torch.tensor([[1.0, -2.0, 3.0, 4.0]])}
    ticket = Ticket(Masks({"w": mask}), {"init": state, LATER: {"w": -state["w"]}})
    assert control(ticket, "init-sign", seed=0, rewind=LATER).recipe["control"]["changed"] == 2
    assert control(ticket, "init-magnitude", seed=0, rewind=LATER).recipe["control"]["changed"] == 0
    for seed in range(20):
        made = control(ticket, "shuffle", seed=seed)
        moved = int((made.masks["w"] & ~mask).sum())
        assert made.recipe["control"]["changed"] == moved


def test_allocations_keep_the_total() -> None:
    g = torch.Generator().manual_seed(SEED)
    for _ in range(200):
        sizes = torch.randint(1, 60, (7,), generator=g).tolist()
        masks = {f"{i}.weight": torch.rand(n, generator=g) < 0.5 for i, n in enumerate(sizes)}
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        exact = {name: kept[name] / mask.numel() for name, mask in masks.items()}
        assert allocated_counts(Masks(masks), exact) == kept
        # the same total spread evenly: every share is off by its rounding, and no count by more than one
        even = dict.fromkeys(masks, sum(kept.values()) / sum(sizes))
        counts = allocated_counts(Masks(masks), even)
        assert sum(counts.values()) == sum(kept.values())
        for name, mask in masks.items():
            assert 0 <= counts[name] <= mask.numel()
            assert abs(counts[name] - even[name] * mask.numel()) <= 1.5
    masks = Masks({"a": torch.arange(10) < 2, "b": torch.arange(10) < 3})
    assert allocated_counts(masks, {"a": 0.36, "b": 0.06}) == {"a": 4, "b": 1}
    assert allocated_counts(masks, {"a": 0.44, "b": 0.06}) == {"a": 4, "b": 1}


def test_a_control_of_a_control_remembers(tmp_path: Path) -> None:
    ticket = mlp_ticket([4, 6, 3])
    first = control(ticket, "shuffle", seed=1, rewind=LATER)
    second = control(first, "sign", seed=2)
    assert second.recipe["control"]["after"] == first.recipe["control"]
    assert second.recipe["control"]["of"] == first.digest()
    second.save(tmp_path / "t.safetensors")
    assert same_bits(Ticket.load(tmp_path / "t.safetensors"), second)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("shufle", {}, "unknown control 'shufle'; did you mean 'shuffle'"),
        ("invert", {}, "unknown control 'invert'"),
        ("shuffle", {"seed": -1}, "seed must be an int"),
        ("shuffle", {"seed": 1.0}, "seed must be an int"),
        ("shuffle", {"rewind": "2ep"}, "no rewind point '2ep', only init, 500it"),
        ("shuffle", {"scale": 1.0}, "control 'shuffle' takes no scale; it is of noise"),
        ("noise", {"draw": drawn, "scale": 1.0}, "takes no draw; it is of reinit, random, magnitude"),
        ("noise", {}, "control 'noise' needs scale="),
        ("noise", {"scale": 0.0}, "scale must be a finite number above 0, got 0.0"),
        ("noise", {"scale": float("inf")}, "scale must be a finite number above 0, got inf"),
        ("noise", {"scale": True}, "scale must be a finite number above 0, got True"),
        ("allocation", {}, "control 'allocation' needs densities="),
        ("allocation", {"densities": [0.5]}, "densities must map weight names to numbers, got list"),
        (
            "allocation",
            {"densities": {"0.weight": 0.5}},
            "name the weights 0.weight, 3.weight, 6.weight",
        ),
        ("init-sign", {}, "needs a later rewind point"),
        ("reinit", {}, "recipe names no network and no init to draw weights from; give draw="),
        ("reinit", {"draw": 5}, "draw must be a function seed -> state dict, got int"),
        ("reinit", {"draw": lambda seed: [1]}, "draw must return a state dict of tensors, got list"),
        ("reinit", {"draw": lambda seed: {"0.weight": 1}}, "draw must return a state dict of tensors"),
        ("reinit", {"draw": lambda seed: {}}, "of another network: it lacks 0.weight; it lacks 1.weight"),
        ("reinit", {"draw": lambda seed: drawn(1) | {"x": torch.ones(1)}}, "the ticket has no x"),
        (
            "random",
            {"draw": lambda seed: drawn(3) | {"0.weight": torch.ones(1)}},
            r"0.weight is \[1\], the ticket's \[5, 2, 3, 3\]",
        ),
        ("reinit", {"draw": lambda seed: drawn(1)}, "drawn anew are the ticket's own"),
    ],
)
def test_refusals(kind: str, given: dict[str, Any], message: str) -> None:
    ticket = conv_ticket(0)
    before = ticket.digest()
    with pytest.raises(ArgumentError, match=message) as error:
        control(ticket, kind, **({"seed": 0} | given))
    assert "\n" not in str(error.value)
    assert ticket.digest() == before


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({"a": 1.5, "b": 0.0}, r"density of 'a' must be a number in \[0, 1\], got 1.5"),
        ({"a": 0.5, "b": float("nan")}, "density of 'b' must be a number"),
        ({"a": 0.5, "b": True}, "density of 'b' must be a number"),
        ({"a": 0.5, "b": 0.5}, "the densities keep 10 weights, the ticket 5: allocate for its density"),
        ({"a": 0.0, "b": 0.0}, "the densities keep 0 weights, the ticket 5"),
        ({"a": 0.5, "c": 0.5}, "densities must name the weights a, b, got a, c"),
    ],
)
def test_allocations_that_do_not_fit(densities: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        allocated_counts(Masks({"a": torch.arange(10) < 2, "b": torch.arange(10) < 3}), densities)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"network": "mlp", "init": "he_scaled"}, "widths must be at least two positive ints"),
        ({"network": "mlp", "widths": [6, 9, 3], "init": "he_scaled"}, "drawn anew are of another network"),
        ({"network": "mlp", "widths": [6, 9, 7, 4], "init": "he"}, "unknown init 'he'"),
        ({"network": "lenett", "init": "he_scaled"}, "unknown network 'lenett'; did you mean 'lenet'"),
        ({"network": {"name": "lenet"}, "init": "he_scaled"}, "names no network to draw"),
        ({"network": "lenet"}, "names no init to draw"),
    ],
)
def test_recipes_that_cannot_be_drawn_from(recipe: dict[str, Any], message: str) -> None:
    ticket = mlp_ticket([6, 9, 7, 4])
    with pytest.raises(ArgumentError, match=message):
        control(Ticket(ticket.masks, ticket.snapshots, recipe), "reinit", seed=0)
