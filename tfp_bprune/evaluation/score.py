"""What an export is worth, measured as those who serve it have it and written into its manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.fresh import check_export, reload
from tfp_bprune.evaluation.metrics import as_served, of_outputs
from tfp_bprune.evaluation.sweep import BATCHES, machine
from tfp_bprune.exports.card import CARD, card_of
from tfp_bprune.files.runs import Run
from tfp_bprune.types import Json


def record_scores(path: str | os.PathLike[str], split: Split, batches: Sequence[int] = BATCHES) -> Json:
    """Scores and times an export in a fresh process, and adds what was found to its manifest.

    Args:
      path: a folder written by `export`.
      split: what to score on; times are of its examples too.
      batches: sizes to time.

    Returns:
      The manifest, now with `scores` (of `metrics.of_outputs`, with the name and size of the split), `latency_ms` by batch
      size, and the `machine` and `threads` that it was measured with.

    Raises:
      ExportError: the export is damaged or fails to run, or its runtime is not installed; its manifest stays as it was.
      DataError: the split is empty, or its examples have another shape than the export takes.
    """
    threads = len(os.sched_getaffinity(0))
    split = as_served(split, check_export(path))
    [found] = reload([path], split.x, batches=batches, threads=threads, trust=True)
    scores = {"split": split.name, "examples": len(split), **of_outputs(found.outputs, split.y)}
    latency = {batch: times["median"] for batch, times in found.latency_ms.items()}
    run = Run.open(path)
    measured: Json = {"scores": scores, "latency_ms": latency, "machine": machine(), "threads": threads}
    run.commit({CARD: card_of(run.manifest | measured)}, **measured)
    return run.manifest
