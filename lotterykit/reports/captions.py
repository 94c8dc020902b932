"""Captions of figures and tables, and how to read them."""

from __future__ import annotations

from lotterykit.reports import tables
from lotterykit.reports.groups import Group
from lotterykit.reports.points import number, say
from lotterykit.reports.tickets import Pair, ticket

LEGEND = (
    "Density is kept / total weights (biases are not counted). A strong ticket is evaluated as pruned, "
    "a weak ticket after training.",
    "The ground truth is the planted ticket itself, evaluated and trained like every other; the dotted "
    "vertical line is its density, the star its place. A method that finds it meets the star.",
    "Lines are means over seeds, bands reach from the least to the greatest seed. A method keeps its colour "
    "and marker in all figures.",
    "A hollow marker, a hatched cell or a cross means collapse: in some seed an empty layer, or no live path "
    "from input to output, so that the network computes a constant.",
)
MEANS = (
    "Means over seeds, below them the least and the greatest. The last two columns count seeds that "
    "collapsed: "
    "no live path can happen without an empty layer."
)
RESCALED = (
    " The untrained ground truth's MSE is that of its output times its output scale, which is exact; "
    "methods' outputs are taken as they are."
)
HIDING = (
    "Size of the planted parameters in units of the mother's standard deviation in that layer, and how well "
    "the size alone gives them away (area under the ROC curve; 0.5 is perfect hiding, 1 none). Means over "
    "seeds."
)


DIFFERENCES = (
    "Mean test metric after training in each sweep, and what a sweep has more than the first: the mean of "
    "the differences between cells with the same seed, below it the least and the greatest."
)


def side_caption(group: Group) -> str:
    """Caption of the panels that show each sweep of a group."""
    what = "Test accuracy" if group.classification else "Test mean squared error (log axis)"
    return (
        f"{what} of the pruned network in each sweep, {_moments(group)}; all panels have the same axes, the "
        f"ground truth is each sweep's own. {_counts(group)} {group.truth_note}"
    ).rstrip()


def metric_caption(group: Group) -> str:
    """Caption of the metric figure with its conditions."""
    what = "Test accuracy" if group.classification else "Test mean squared error (log axis)"
    text = f"{what} of the pruned network {_moments(group)}. {_counts(group)} "
    if not group.classification:
        if group.rescaled:
            text += (
                "Below gain 1 the planted ticket computes the target divided by its output scale: before "
                "training the ground truth is drawn for its output times that scale, which is exact; "
                "methods' points, and everything after training, are of outputs as they are. "
            )
        text += (
            "Up to scale: every output, the ground truth's too, times one positive factor fitted by least "
            "squares on the training split. "
        )
    return text + _overlaid(group) + group.truth_note


def ladder_caption(group: Group) -> str:
    """Caption of the information ladder."""
    what = "Test accuracy" if group.classification else "Test mean squared error (log axis)"
    return (
        f"{what} of masks with as many weights as the planted ticket, by how much of it they were told: "
        "nothing (random); how many of its weights lie in each layer (oracle-densities); also which neurons "
        "it lives in (oracle-neurons); the ticket with 50, 30 or 10 % of its weights exchanged for random "
        "others of the same layer (oracle-less-...); the ticket, alone without the biases that are not its "
        "own. A step between two rungs is what the missing knowledge is worth. Dots are means over seeds, "
        "lines reach from the least to the greatest seed. "
        f"{_counts(group)} {group.truth_note}"
    ).rstrip()


def _overlaid(group: Group) -> str:
    if group.overlay is None:
        return ""
    told = ", ".join(say(v) for v in group.values)
    also = ", the ground truth's too" if len(group.truths) > 1 else ""
    return f"Line styles tell {group.overlay} apart ({told}){also}. "


def recovery_caption(group: Group) -> str:
    """Caption of the recovery figure."""
    return (
        "Precision: share of the kept weights that were planted; recall: share of the planted weights that "
        "were kept; "
        "IoU of live paths: overlap of the two tickets after everything that no path from input to output "
        "uses is "
        f"removed. {_counts(group)} {_overlaid(group)}"
    ).rstrip()


def layer_caption(group: Group) -> str:
    """Caption of the layerwise densities."""
    names = tables.layer_names([*group.rows, *group.truth])
    told = ", ".join(f"{i} is {name}" for i, name in enumerate(names, start=1))
    return (
        "Share of each layer's weights that is kept (mean over seeds; darker is denser). Crossed and "
        "hatched: "
        "the layer is empty in that many seeds. The lowest row counts seeds without a live path from input "
        "to "
        f"output. Layer {told}. {_counts(group)}"
    )


def ticket_caption(pair: Pair) -> str:
    """Caption of the drawn tickets: whose they are, and how much of one is in the other."""
    planted, found = ticket(pair.planted), ticket(pair.found)
    text = f"Live weights of seed {pair.seed}. "
    if pair.found is not None and pair.series is not None:
        live, recall = number(pair.found, "recovery", "live", "iou"), number(pair.found, "recovery", "recall")
        text += f"Found by {pair.series.label} at density {tables.show(number(pair.found, 'density'))} "
        if found and found.edges:
            text += (
                "(of the tickets with a live path, those nearest to the truth's density, and of these the "
                f"one with the best live IoU: {tables.show(live)}; recall {tables.show(recall)}). "
            )
        else:
            text += f"(no method's ticket with a live path can be drawn; recall {tables.show(recall)}). "
    if planted and found and found.edges:
        shared = len(set(planted.edges) & set(found.edges))
        text += f"{shared} of the {len(found.edges)} weights drawn as found are planted ones. "
    return text + (
        "Layers from left to right; edge width is proportional to |w| within a layer, whose greatest |w| "
        "is printed below. A neuron of the "
        "mother stands "
        "at the same place in all three panels."
    )


def _moments(group: Group) -> str:
    if group.pipeline == "multi-shot":
        return "before (strong ticket) and after (weak ticket) the final training"
    return "before (strong ticket) and after training (weak ticket)"


def _counts(group: Group) -> str:
    n, epochs = len(group.seeds), group.conditions.get("epochs")
    parts = [f"{n} seed{'s' * (n != 1)}", group.pipeline]
    if group.pipeline == "multi-shot":
        parts.append(
            f"{group.conditions.get('shots', '?')} shots of {group.conditions.get('shot_epochs', '?')} epochs"
        )
    scored = {
        row["spec"].get("score_epochs") for row in group.rows if row["spec"]["pipeline"] == "edge-popup"
    }
    if scored and group.pipeline != "edge-popup":
        told = ", ".join(str(value) for value in sorted(scored, key=str))
        parts.append(f"edge-popup instead: {told} epochs of training scores, weights frozen")
    elif scored:
        parts.append(f"{group.conditions.get('score_epochs', '?')} epochs of training scores, weights frozen")
    if epochs is not None:
        parts.append(f"{epochs} epochs of training at the end")
    names = ("depth", "width") if group.unplanted else ("depth", "width", "gain")
    parts += [f"{n} {say(group.conditions[n])}" for n in names if n in group.conditions]
    parts += ["unplanted"] if group.unplanted else []
    return "Conditions: " + ", ".join(parts) + "."
