"""A search of Keras Tuner that was ended goes on as if it had not been."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_POINTS = 50  # that its Bayesian optimization draws for each proposal


def take_up(oracle: Any) -> None:
    """Puts an oracle that Keras Tuner read from its files where one that was never ended would be.

    Its files are written one after the other: a trial of which the oracle's own does not tell had not begun, and one that
    had ended is not repeated. Trials go in the order in which they began, and the random state of the Bayesian optimization,
    which no file has, is taken on by what earlier proposals drew.
    """
    oracle.trials = {name: oracle.trials[name] for name in oracle.start_order}
    oracle._retry_queue = [name for name in oracle._retry_queue if name not in oracle.end_order]
    if hasattr(oracle, "_random_state"):
        for _ in range(_proposals(oracle)):
            oracle._random_state.uniform(size=(_POINTS, len(oracle._nonfixed_space())))


def remove_unfinished(folder: Path) -> None:
    """Removes the checkpoints that TensorFlow was writing into a search's folder when its process was killed."""
    trials = [] if folder.is_symlink() else [trial for trial in folder.glob("trial_*") if not trial.is_symlink()]
    for place in (place for trial in trials for place in trial.glob("*_temp")):
        shutil.rmtree(place, ignore_errors=True)  # of a link it takes nothing


def _proposals(oracle: Any) -> int:
    """How many trials were proposed by what those before them had found; the first are random."""
    first = oracle.num_initial_points or max(3 * len(oracle.hyperparameters.space), 3)
    count = completed = 0
    for trial in oracle.trials.values():
        count += completed >= first
        completed += trial.status == "COMPLETED"
    return count
