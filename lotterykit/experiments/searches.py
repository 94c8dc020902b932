"""Searches ask for trainings; what several ask for at once is trained together.

A search is a generator: it yields a `Training` and is sent the `Trained`. It is a function of what it is
sent, so that after a crash it runs again over the journal of its trainings and goes on, bitwise, where it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lotterykit.experiments.setup import Chain, Setup, chain_of
from lotterykit.experiments.ticket import Ticket
from lotterykit.experiments.trainings import Trained, Training, Turn
from lotterykit.mask import Masks
from lotterykit.nn.convert import convert_, revert_
from lotterykit.training.replicas import RunSpec, train_replicas
from lotterykit.training.single import train

Search = Generator[Training, Trained, Ticket]


def run_together(
    searches: Mapping[str, Search],
    setup: Setup,
    *,
    folder: Path | None = None,
    progress: Callable[[str, int, Training], None] | None = None,
) -> dict[str, Ticket]:
    """Run searches to their ends; the tickets by name.

    In each turn every search that is not at its end has asked for one training. Those of fully connected
    ReLU networks run as replicas in one program, the others one after the other. `folder` keeps a journal in
    a folder a search, which a later call with the same searches goes on from; `progress(name, number,
    training)` is called before each training that is not in the journal.
    Raises `ArgumentError` where the folder holds other searches' trainings.
    """
    tickets: dict[str, Ticket] = {}
    asked: dict[str, Training] = {}
    numbers = dict.fromkeys(searches, 0)

    def advance(name: str, found: Trained | None) -> None:
        try:
            asked[name] = next(searches[name]) if found is None else searches[name].send(found)
            numbers[name] += 1
        except StopIteration as end:
            asked.pop(name, None)
            tickets[name] = end.value

    for name in searches:
        advance(name, None)
    while asked:
        turns = {
            name: Turn(training, setup, None if folder is None else folder / name / f"{numbers[name]:03}")
            for name, training in asked.items()
        }
        waiting = [turn for turn in turns.values() if not turn.finished]
        for name, turn in turns.items():
            if progress is not None and not turn.finished:
                progress(name, numbers[name], turn.training)
        for group in _groups(waiting):
            _train_group(group, setup)
        for name, turn in turns.items():
            advance(name, turn.found)
    return {name: tickets[name] for name in searches}


def _groups(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Those that train from and to the same steps."""
    groups: dict[object, list[Turn]] = {}
    for turn in turns:
        groups.setdefault((turn.at, turn.end, turn.piece, turn.training.scores is None), []).append(turn)
    yield from groups.values()


def _train_group(turns: list[Turn], setup: Setup) -> None:
    chain = chain_of(setup)
    if chain is None:
        for turn in turns:
            while not turn.finished:
                turn.take(_module_piece(turn, setup))
        return
    while not turns[0].finished:
        for turn, part in zip(turns, _replica_pieces(turns, setup, chain), strict=True):
            turn.take(part)


def _module_piece(turn: Turn, setup: Setup) -> Trained:
    training, model = turn.training, setup.build()
    model.load_state_dict(turn.found.state)
    if training.scores is None:
        convert_(model, masks=training.masks, format="auto")
    elif turn.active is not None:
        convert_(model, masks=turn.active)
    found = train(
        model,
        setup.data,
        training.recipe,
        validation=setup.validation,
        seed=training.seed,
        first=turn.at,
        steps=turn.cut,
        optimizer=turn.found.optimizer if turn.at > training.first else None,
        augment=setup.augment,
        scores=turn.scores,
    )
    if training.scores is None:
        revert_(model)
    held = model.state_dict()
    if training.scores is not None:  # parameters are frozen, but masked layers have lost the pruned ones
        held |= {name: training.state[name] for name, _ in model.named_parameters()}
    state = {name: held[name].detach().cpu().clone() for name in training.state}
    masks = training.masks if training.scores is None else Masks(found.masks)
    return Trained(
        state, found.metrics, masks, found.curve, found.steps, found.validation, found.optimizer, found.scores
    )


def _replica_pieces(turns: list[Turn], setup: Setup, chain: Chain) -> list[Trained]:
    first, cut = turns[0].at, turns[0].cut
    specs = [_replica(turn, setup, chain) for turn in turns]
    results = train_replicas(specs, first=first, steps=cut)
    parts = []
    for turn, result in zip(turns, results, strict=True):
        state = {chain.outer[name]: tensor for name, tensor in result.weights.items()}
        masks = {chain.outer[name]: mask for name, mask in result.masks.items()}
        order = [name for name in turn.training.state if name in state]
        parts.append(
            Trained(
                {name: state[name] for name in order},
                result.metrics,
                turn.training.masks if turn.training.scores is None else Masks(masks),
                result.curve,
                result.steps,
                result.validation,
                result.optimizer,
                {chain.outer[name]: tensor for name, tensor in result.scores.items()},
            )
        )
    return parts


def _replica(turn: Turn, setup: Setup, chain: Chain) -> RunSpec:
    training = turn.training
    masks, scores, active = None, turn.scores, turn.active
    if scores is None:
        masks = {chain.inner[name]: mask for name, mask in training.masks.items()}
    elif scores.start is not None:
        start = {chain.inner[name]: tensor for name, tensor in scores.start.items()}
        scores = replace(scores, start=start)
    return RunSpec(
        chain.widths,
        chain.data,
        training.recipe,
        weights={chain.inner[name]: tensor for name, tensor in turn.found.state.items()},
        masks=masks,
        seed=training.seed,
        optimizer=turn.found.optimizer if turn.at > training.first and turn.found.optimizer else None,
        scores=scores,
        validation=chain.validation,
        active=None if active is None else {chain.inner[name]: mask for name, mask in active.items()},
    )
