"""What pruning one layer at a time does to accuracy, NLL and calibration."""

from __future__ import annotations

from collections.abc import Sequence

from tfp_bprune.searching.session import Session
from tfp_bprune.trials.ranking import Counts
from tfp_bprune.types import Json

KEPT = (0.3, 0.1, 0.05, 0.02, 0.01, 0.005)


def sensitivity(
    session: Session, ranking: str = "score", kept: Sequence[float] = KEPT, around: Counts | None = None
) -> list[Json]:
    """Trials in which one kernel is pruned to each part in `kept` and the others stay as they are.

    Args:
      kept: parts of the weights that are left.
      around: what is kept of the other kernels; all by default. The parts are then of this kernel's count.

    Returns:
      The rows of the trials, each with `layer` and `kept`.
    """
    order = session.rankings[ranking]
    start = around or order.left
    rows = []
    for name in start:
        for part in kept:
            wanted, most = max(1, round(part * start[name])), order.left[name]
            row = session.trial("sensitivity", ranking, start | {name: min(wanted, most)})
            really = part if wanted <= most else most / start[name]
            rows.append(row | {"layer": name.rpartition("/")[0], "tensor": name, "kept": really})
    return rows
