"""The information ladder: masks at the truth's density that know a part of the planted ticket.

What separates two rungs is what the lower one lacks: the layer densities (allocation), the neurons, the last
weights (search); what training adds on a rung is optimisation. "random" stands below, the oracle on top.
Only weights are masked: biases stay, as for every method but the oracle, whose ticket holds its own alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lotterykit.mask import Masks


def oracle_densities(ticket: Masks, generator: torch.Generator) -> Masks:
    """Random weights, in each layer as many as the ticket has there."""
    return Masks({n: _chosen(torch.ones_like(m), int(m.sum()), generator) for n, m in ticket.items()})


def oracle_neurons(ticket: Masks, generator: torch.Generator) -> Masks:
    """Random weights between the ticket's live neurons, in each layer as many as the ticket has there.

    A layer whose weights outnumber the connections of its live neurons (dead weights of a ticket from
    elsewhere) has the rest beside them.
    """
    live, kept = ticket.live(), {}
    for name, mask in ticket.items():
        between = live[name].any(1)[:, None] & live[name].any(0)[None, :]
        inside, count = int(between.sum()), int(mask.sum())
        chosen = _chosen(between, min(count, inside), generator)
        kept[name] = chosen | _chosen(~between, count - min(count, inside), generator)
    return Masks(kept)


def oracle_less(share: float) -> Callable[[Masks, torch.Generator], Masks]:
    """The ticket with `share` of all its weights, drawn at random, each exchanged for a random weight of the
    same layer that is not the ticket's (where there is one), so that each layer's density stays."""

    def less(ticket: Masks, generator: torch.Generator) -> Masks:
        counts = [int(mask.sum()) for mask in ticket.values()]
        lost = torch.zeros(sum(counts), dtype=torch.bool)
        lost[torch.randperm(sum(counts), generator=generator)[: round(share * sum(counts))]] = True
        kept = {}
        for (name, mask), gone in zip(ticket.items(), lost.split(counts), strict=True):
            count = min(int(gone.sum()), int((~mask).sum()))
            keeps = mask.clone()
            places = mask.flatten().nonzero().squeeze(1)[gone][:count]
            keeps.view(-1)[places] = False
            kept[name] = keeps | _chosen(~mask, count, generator)
        return Masks(kept)

    return less


def _chosen(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random places of the True entries of `among`."""
    places = among.flatten().nonzero().squeeze(1)
    mask = torch.zeros_like(among)
    mask.view(-1)[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return mask


RUNGS: dict[str, Callable[[Masks, torch.Generator], Masks]] = {
    "oracle-densities": oracle_densities,
    "oracle-neurons": oracle_neurons,
    "oracle-less-50": oracle_less(0.5),
    "oracle-less-30": oracle_less(0.3),
    "oracle-less-10": oracle_less(0.1),
}
