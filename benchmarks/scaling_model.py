"""A model of larger jobs: step time = compute + what of the exchange of gradients does not hide behind it.

    python benchmarks/scaling_model.py      # reads results/scaling.json, scaling_part.json if it is there, and networks.json

Ring all-reduce of n bytes over p workers, sent in m messages (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002):

    exchange(p) = m 2 (p - 1) a + 2 (p - 1) / p n / b

with the latency a and the bandwidth b of a link. In nodes of g workers the hierarchical form sums within the node, sends
the node's g parts of n / g over the network side by side, and spreads within the node:

    exchange(p) = m 2 (g - 1) a_in + 2 (g - 1) / g n / b_in  +  m 2 (p / g - 1) a_out + 2 (p / g - 1) / (p / g) n / b_out

    step(p) = compute + visible exchange(p),    efficiency(p) = compute / step(p)

Measured here, two processes on one machine: a, b and `visible`, the part of the exchange that does not hide. Measured here
too: the compute of a step of VGG-16 and ResNet-18. Both are of plain networks and of Bayesian ones by reparameterization, or by
Flipout where the results have no rows of that; the picture says which. Published: the speed-ups at 2 to 8 workers; calibrated
at 2 alone, the ring and a tree (a round of messages for each doubling) are checked against the others. Assumed: the links of
the clusters below. Everything else is predicted.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np

WORKERS = tuple(2**i for i in range(3, 13))
BYTES, FUSION = 4, 64 * 2**20  # of a number; Horovod's fusion buffer
# Sharma and Jennings 2020 (arXiv 2005.11619), speed-ups on a Cray XC40, read off the plot of their repository to +-.05.
PUBLISHED = {"Bayesian": {2: 1.8, 4: 3.3, 6: 4.7, 8: 6.1}, "plain": {2: 1.8, 4: 3.55, 6: 5.1, 8: 6.6}}
COLUMNS = {"network": "", "layers": "", "cluster": "", "change": "", **{str(p): ".2f" for p in WORKERS}}


@dataclass(frozen=True)
class Link:
    """Seconds a message waits, and bytes a second."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Cluster:
    """Workers of one speed, some in each node."""

    name: str
    inside: Link
    outside: Link
    per_node: int
    speed: float
    """Of a worker, in multiples of the two cores that compute was measured on."""


ETHERNET = Link(25e-6, 10e9 / 8)
CLUSTERS = (
    Cluster("CPU nodes, 10 Gb/s Ethernet", Link(1e-6, 10e9), ETHERNET, 1, 1),
    Cluster("8 accelerators a node, 200 Gb/s", Link(5e-6, 200e9), Link(5e-6, 200e9 / 8), 8, 200),
)


def ring(size: float, workers: int, link: Link, messages: int) -> float:
    """Seconds of a ring all-reduce."""
    return messages * 2 * (workers - 1) * link.latency + 2 * (workers - 1) / workers * size / link.bandwidth


def exchange(size: float, workers: int, cluster: Cluster, messages: int) -> float:
    """Seconds of the hierarchical all-reduce; of the plain ring where a node has one worker."""
    group = min(cluster.per_node, workers)
    inside = ring(size, group, cluster.inside, messages)
    return inside + ring(size, workers // group, cluster.outside, messages)


def calibrate(rows: list[dict[str, Any]]) -> tuple[Link, float]:
    """The link between two processes of this machine, and the visible part of the exchange.

    For two workers exchange = 2 a + n / b: a line through the times of the all-reduces, fitted to relative errors.
    """
    alone = [(row["numbers"] * BYTES, row["ms"] / 1e3) for row in rows if row.get("exchange") == "all"]
    sizes, seconds = np.array(alone).T
    (latency, inverse), *_ = np.linalg.lstsq(
        np.stack([2 / seconds, sizes / seconds], 1), np.ones(len(alone)), rcond=None
    )
    link = Link(float(latency), float(1 / inverse))
    visible = []
    for row in of_estimator(rows)[1]:
        paid = row["one_ms"] * (1 / row["efficiency"] - 1 / row["without_exchange"]) / 1e3
        visible.append(paid / ring(row["parameters"] * BYTES, 2, link, messages=1))
    return link, float(np.clip(np.median(visible), 0, 1))


def of_estimator(rows: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The estimator that networks are taken of, and the rows of it and of plain networks, as most people train them."""
    usual = [
        row
        for row in rows
        if "network" in row
        and (row.get("engine", "horovod"), row.get("accumulate", 1), row.get("policy", "float32"))
        == ("horovod", 1, "float32")
    ]
    found = {row["layers"] for row in usual}
    estimator = "reparameterization" if "reparameterization" in found else "flipout"
    return estimator, [row for row in usual if row["layers"] in ("deterministic", estimator)]


def published_rows() -> list[dict[str, Any]]:
    """The published efficiencies, and what two forms say of them that know the one at two workers and nothing else.

    `ring`: the exchange grows as 2 (p - 1) / p, a ring whose bandwidth decides. `tree`: it grows as log2 p, a round of
    messages for each doubling of the workers, as in recursive doubling and in hierarchies of nodes.
    """
    rows = []
    for kind, speedups in PUBLISHED.items():
        paid = 2 / speedups[2] - 1  # visible exchange over compute, of two workers
        for p, speedup in speedups.items():
            ring_form, tree_form = 1 / (1 + paid * 2 * (p - 1) / p), 1 / (1 + paid * math.log2(p))
            row = {"published": kind, "workers": p, "efficiency": speedup / p, "ring": ring_form, "tree": tree_form}
            rows.append(row)
    return rows


def predicted_rows(compute: dict[tuple[str, str], tuple[float, int]], visible: float) -> list[dict[str, Any]]:
    """Efficiencies for `WORKERS` of each network, cluster, and change to the exchange."""
    rows = []
    for (network, layers), (seconds, parameters) in compute.items():
        for cluster in CLUSTERS:
            size, tensors = parameters * BYTES, 60 if network == "resnet18" else 32
            fused = max(1, math.ceil(size / FUSION))
            changes = {
                "as it is": (size, fused, 1),
                "fp16": (size / 2, fused, 1),
                "no fusion": (size, tensors, 1),
                "batch x 4": (size, fused, 4),
            }
            for change, (sent, messages, batch) in changes.items():
                work = batch * seconds / cluster.speed
                efficiency = {str(p): work / (work + visible * exchange(sent, p, cluster, messages)) for p in WORKERS}
                rows.append(
                    {"network": network, "layers": layers, "cluster": cluster.name, "change": change} | efficiency
                )
    return rows


def measured_compute(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, int]]:
    """Seconds a step at batch 64 and parameters, of the whole networks, by network and layers."""
    return {
        (row["network"], row["layers"]): (row["ms"] / 1e3, row["parameters"])
        for row in of_estimator(rows)[1]
        if row["network"] in ("vgg16", "resnet18") and row["width"] == 1
    }


def rows_in(*names: str) -> list[dict[str, Any]]:
    """The rows of those results that are there."""
    paths = [measure.RESULTS / f"{name}.json" for name in names]
    return [row for path in paths if path.exists() for row in json.loads(path.read_text())["rows"]]


def figure(published: list[dict[str, Any]], predicted: list[dict[str, Any]], computed: str, exchanged: str) -> Any:
    """Left the check against published figures, right what is predicted, and the estimators of what was measured for it."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = made.subplots(1, 2, width_ratios=(2, 3))
    for kind, colour in (("Bayesian", "#d55e00"), ("plain", "#56b4e9")):
        rows = [row for row in published if row["published"] == kind]
        workers = [row["workers"] for row in rows]
        if kind == "Bayesian":  # both are the same at two workers, and so are the forms
            left.plot(workers, [row["tree"] for row in rows], color="black", linewidth=1, label="tree, from 2 workers")
            left.plot(
                workers, [row["ring"] for row in rows], "--", color="black", linewidth=1, label="ring, from 2 workers"
            )
        left.errorbar(
            workers,
            [row["efficiency"] for row in rows],
            [0.05 / p for p in workers],
            fmt="o",
            color=colour,
            label=f"{kind}, published",
        )
    left.set_title("calibrated at 2 workers, checked at 4 to 8", fontsize=10)
    for network, style in (("vgg16", "-"), ("resnet18", "--")):
        for cluster, colour in zip(CLUSTERS, ("#009e73", "#cc79a7"), strict=True):
            [row] = [
                r
                for r in predicted
                if (r["network"], r["layers"], r["cluster"], r["change"])
                == (network, computed, cluster.name, "as it is")
            ]
            right.plot(WORKERS, [row[str(p)] for p in WORKERS], style, color=colour, label=f"{network}, {cluster.name}")
    right.set_xscale("log", base=2)
    right.set_xticks(WORKERS, [str(p) for p in WORKERS], fontsize=8)
    left.set_xticks([*PUBLISHED["plain"]])
    measured = "" if computed == exchanged else f"\n(visible part of the exchange: {exchanged})"
    right.set_title(f"predicted, {computed}, batch 64 a worker{measured}", fontsize=10)
    for axes in (left, right):
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("workers")
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    right.legend(frameon=False, fontsize=7, loc="upper right", ncols=2, columnspacing=1)
    left.set_ylabel("efficiency")
    return made


def main() -> None:
    """Calibrates, checks, predicts, writes and draws."""
    arguments = measure.parser(__doc__, "scaling_model").parse_args()
    exchanges, steps = rows_in("scaling", "scaling_part"), rows_in("networks")
    exchanged, computed = of_estimator(exchanges)[0], of_estimator(steps)[0]
    link, visible = calibrate(exchanges)
    print(
        f"measured link: {link.latency * 1e6:.0f} us, {link.bandwidth / 1e9:.2f} GB/s; visible part, {exchanged}: {visible:.2f}",
        file=sys.stderr,
    )
    published, predicted = published_rows(), predicted_rows(measured_compute(steps), visible)
    calibration = {"latency_s": link.latency, "bandwidth_bytes_per_s": link.bandwidth, "visible": visible}
    calibration |= {"layers": exchanged}
    measure.write([calibration, *published, *predicted], arguments.json)
    if arguments.json != "-":
        measure.draw(figure(published, predicted, computed, exchanged), Path(arguments.json).with_suffix(".png"))
        check = {"published": "", "workers": "d", "efficiency": ".3f", "ring": ".3f", "tree": ".3f"}
        print(measure.markdown(published, check), measure.markdown(predicted, COLUMNS), sep="\n\n")


if __name__ == "__main__":
    main()
