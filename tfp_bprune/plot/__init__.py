"""Pictures in one call: of trainings, predictions, weights and sweeps. Each takes Matplotlib axes, or makes them, and gives them back.

Nothing here imports TensorFlow until a model is drawn.
"""

from tfp_bprune.plot.answers import by_class, reliability, risk_coverage
from tfp_bprune.plot.curves import bands
from tfp_bprune.plot.examples import examples
from tfp_bprune.plot.sweep import histogram, sweep
from tfp_bprune.plot.training import divergences, history
from tfp_bprune.plot.units import units
from tfp_bprune.plot.weights import signal_to_noise, sparsity

__all__ = [
    "bands",
    "by_class",
    "divergences",
    "examples",
    "histogram",
    "history",
    "reliability",
    "risk_coverage",
    "signal_to_noise",
    "sparsity",
    "sweep",
    "units",
]
