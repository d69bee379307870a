"""The main measurement: prune at several sparsities, export, reload each in a fresh process, score and time."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.fresh import Reloaded, reload
from tfp_bprune.evaluation.metrics import as_served, of_outputs
from tfp_bprune.exports import export
from tfp_bprune.exports.precision import Asked
from tfp_bprune.files.writing import beside, put_in_place
from tfp_bprune.graphs import adopt
from tfp_bprune.pruning import prune
from tfp_bprune.pruning.masks import check_sparsity
from tfp_bprune.pruning.scores import CRITERIA, decibel
from tfp_bprune.pruning.scoring import Scoring, default_criterion
from tfp_bprune.pruning.select import prunable_weights, scored
from tfp_bprune.training import recalibrate
from tfp_bprune.types import Aggregate, Calibrated, Counts, Criterion, Granularity, Json, Scope

SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98)
BATCHES = (1, 32, 256)
_HISTOGRAM_BINS = 120
_WIDEST = 80.0  # dB of a histogram


def sweep(
    model: Any,
    split: Split,
    exports: str | os.PathLike[str],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    criterion: Criterion | None = None,
    scope: Scope = "global",
    samples: int = 30,
    facts: Json | None = None,
    on_step: Callable[[str], None] = lambda description: None,
    granularity: Granularity = "weight",
    aggregate: Aggregate = "max",
    inputs: bool = False,
    counts: Counts = "weights",
    calibration: Any = None,
    precision: Asked | None = None,
    rounding_loss: float | None = None,
    validation: Any = None,
    on_replace: Callable[[], None] = lambda: None,
) -> Json:
    """Prunes `model` at each sparsity, exports it, and scores and times the exports.

    Args:
      model: Bayesian, or plain. A plain model is ranked by magnitude and has no sampled prediction.
      split: the examples to score on.
      exports: folder for the exports, one for each sparsity and predictive. Exports of an earlier sweep stay there until all new
        ones are measured.
      sparsities: fractions of the weights to remove, each in [0, 1).
      criterion: by default "snr", for a plain model "magnitude".
      samples: number of draws of the sampled prediction.
      facts: further entries of every manifest. Those that are not objects go into every row, such as network or dataset.
      on_step: called with a line of text before each sparsity.
      scope, granularity, aggregate, inputs, counts: as in `prune`.
      on_replace: called before the exports of an earlier sweep are removed.
      calibration: training batches on which `recalibrate` recomputes batch normalization and the noise of a regression before
        each export.
      precision, rounding_loss, validation: for every export, as in `export`; rows then have `payload_bytes`, the bytes of the
        weights alone.

    Returns:
      `{"machine": ..., "rows": [...], "scores": ...}`. There is a row for each sparsity, with the scores, bytes and latency of the
      mean prediction, and those of the sampled one with the prefix `sampled_`. `scores` is the histogram of the weights' scores
      in dB, with the cut of each row.

    Raises:
      BpruneError: as in `prune`, `export` and `reload`.

    Example:
      result = bp.sweep(model, data.examples("valid"), "swept", sparsities=(0.0, 0.9))
      [(row["sparsity"], row["accuracy"], row["bytes"]) for row in result["rows"]]
    """
    model, exports = adopt(model), Path(exports)
    scoring = Scoring(criterion, scope, granularity, aggregate, inputs=inputs, counts=counts).of(model)
    bayesian = default_criterion(model) == "snr"
    for sparsity in sparsities:  # all of them before the exports of an earlier sweep go
        check_sparsity(sparsity)
    scalars = {key: value for key, value in (facts or {}).items() if not isinstance(value, dict)}
    rows, cuts = [], []
    with beside(exports) as fresh:
        for sparsity in sparsities:
            on_step(f"{100 * sparsity:g} % removed")
            pruned, report = prune(model, sparsity=sparsity, **vars(scoring))
            kinds: list[Calibrated] = ["mean", "sampled"] if bayesian else ["mean"]
            places = [fresh / f"{sparsity:g}-{kind}" for kind in kinds]
            ready = [
                pruned if calibration is None else recalibrate(pruned, calibration, predictive=kind) for kind in kinds
            ]
            manifests = [
                export(
                    network,
                    place,
                    predictive=kind,
                    samples=samples,
                    facts=facts,
                    precision=precision,
                    rounding_loss=rounding_loss,
                    validation=validation,
                )
                for network, place, kind in zip(ready, places, kinds, strict=True)
            ]
            served = as_served(split, manifests[0])
            measured = reload(places, served.x, batches=BATCHES, trust=True)
            row: Json = {
                "sparsity": report.sparsity,
                "requested": sparsity,
                "reached": report.reached,
                "method": scoring.by,
                **scalars,
            }
            row |= {"granularity": granularity, "recalibrated": calibration is not None}
            row |= {} if counts == "weights" else {"counts": counts, "counted": report.counted}
            row |= {key: manifests[0][key] for key in ("parameters", "prunable", "nonzeros")}
            row |= figures(measured[0], manifests[0], served.y)
            if bayesian:
                row |= {f"sampled_{key}": value for key, value in figures(measured[1], manifests[1], served.y).items()}
            rows.append(
                row | {"exports": {kind: str(exports / place.name) for kind, place in zip(kinds, places, strict=True)}}
            )
            cuts.append(report.threshold)
        put_in_place(fresh, exports, on_replace)
    return {"machine": machine(), "rows": rows, "scores": histogram(model, scoring.by, cuts)}


def figures(measured: Reloaded, manifest: Json, targets: Any) -> Json:
    """Scores, bytes and speed of one reloaded export."""
    latency = {batch: times["median"] for batch, times in measured.latency_ms.items()}
    throughput = {batch: 1e3 * int(batch) / ms for batch, ms in latency.items()}
    return {
        **of_outputs(measured.outputs, targets),
        "bytes": manifest["bytes"],
        "payload_bytes": manifest["payload_bytes"],
        "latency_ms": latency,
        "throughput": throughput,
    }


def histogram(model: Any, criterion: Criterion, cuts: Sequence[float]) -> Json:
    """Counts of the weights' scores in dB, and the cuts on the same scale; of scores below 0 too as they are, in nats."""
    weights = prunable_weights(adopt(model), criterion)
    scale = decibel if CRITERIA[criterion].ends_at is None else np.asarray
    scores = np.concatenate([scale(scored(name, w, criterion)).ravel() for name, w in weights.items()])
    finite = scores[np.isfinite(scores)]
    low, high = np.percentile(finite, [0.01, 99.99])
    if scale is decibel:  # of units that a prior let go weights are hundreds of dB down: they stand in the first bin
        low, finite = max(low, high - _WIDEST), np.maximum(finite, max(low, high - _WIDEST))
    counts, edges = np.histogram(finite, bins=_HISTOGRAM_BINS, range=(low, high))
    return {
        "criterion": criterion,
        "edges_db": edges.tolist(),
        "counts": counts.tolist(),
        "cuts_db": scale(np.asarray(cuts)).tolist(),
    }


def machine() -> Json:
    """What the figures were measured on."""
    names = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
