"""Keras Tuner's Bayesian optimization, asked and told directly, without any training.

For each question a new oracle is told all trials so far: what it proposes is a function of them, the seed and their
number alone, so that a resumed search goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from threadpoolctl import threadpool_limits

from tfp_bprune.trials._keras_tuner import keras_tuner

Point = dict[str, float]


def propose(space: Mapping[str, tuple[float, float]], told: Sequence[tuple[Point, float]], seed: int) -> Point:
    """Where to look next for the least value.

    Args:
      space: lower and upper end of each coordinate.
      told: points and their values so far; a random point is proposed where there are none.
      seed: of this question; give each its own.

    Returns:
      The point of the lowest confidence bound of a Gaussian process (Matern 5/2) through the points told.
    """
    kt = keras_tuner()
    names = {name: f"x{i}" for i, name in enumerate(space)}  # a slash in a name would be a scope
    parameters = kt.HyperParameters()
    for name, (low, high) in space.items():
        parameters.Float(names[name], low, high)
    oracle = kt.oracles.BayesianOptimizationOracle(
        objective=kt.Objective("value", "min"),
        max_trials=len(told) + 1,
        num_initial_points=1,
        beta=1.0,
        alpha=1e-3,
        seed=seed + 1,  # 0 would be drawn at random
        hyperparameters=parameters,
    )
    oracle.gpr.n_restarts_optimizer = 2
    for i, (point, value) in enumerate(told):
        values = parameters.copy()
        values.values = {names[name]: point[name] for name in space}
        trial = kt.engine.trial.Trial(values, trial_id=str(i), status="COMPLETED")
        trial.score = value
        oracle.trials[str(i)] = trial
    # The matrices are small: threads of the linear algebra would wait for each other longer than they work.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # of scikit-learn, when a length scale ends at its bound
        values = oracle.populate_space(str(len(told)))["values"]
    return {name: min(max(float(values[names[name]]), low), high) for name, (low, high) in space.items()}
