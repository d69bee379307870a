"""Networks that none other beats in both accuracy, or RMSE, and size, or both that and speed."""

from __future__ import annotations

from collections.abc import Sequence

from tfp_bprune.types import Json


def front(rows: Sequence[Json], target: str = "nonzeros") -> list[Json]:
    """The trials on the fronts of accuracy lost against weights and against `latency`, smallest first.

    Args:
      target: of the search; with "bytes" weights count by their `bytes`, which fewer bits change too, else as `nonzeros`.

    Returns:
      Rows with `point`, their number from 1 on, and `on`, the sizes on whose front they are.
    """
    size = size_of(target)
    chosen = {key: {row["trial"] for row in undominated(rows, key)} for key in (size, "latency")}
    members = sorted(
        (row for row in rows if any(row["trial"] in trials for trials in chosen.values())),
        key=lambda row: (row[size], row["trial"]),
    )
    return [
        row | {"point": i, "on": [key for key, trials in chosen.items() if row["trial"] in trials]}
        for i, row in enumerate(members, 1)
    ]


def size_of(target: str) -> str:
    """By what a search with this target counts weights: "bytes" or "nonzeros"."""
    return "bytes" if target == "bytes" else "nonzeros"


def undominated(rows: Sequence[Json], size: str) -> list[Json]:
    """Rows with no other that loses no more accuracy and is smaller, or loses less and is no larger; by size.

    Of equals the first is taken.
    """
    best, found = float("inf"), []
    for row in sorted(rows, key=lambda r: (r[size], lost(r), r["trial"])):
        if lost(row) < best:
            best = lost(row)
            found.append(row)
    return found


def lost(row: Json) -> float:
    """What a trial costs: accuracy lost, or the part by which the RMSE grows."""
    return float(row["accuracy_drop"] if "accuracy_drop" in row else row["rmse_increase"])
