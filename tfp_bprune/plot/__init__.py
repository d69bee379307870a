"""Pictures in one call: of trainings, predictions, weights and sweeps. Each takes Matplotlib axes, or makes them, and gives them back.

Nothing here imports TensorFlow until a model is drawn.
"""

from tfp_bprune.plot.answers import by_class, reliability, risk_coverage
from tfp_bprune.plot.compared import calibration_curves, latencies, risk_curves, sizes, uncertainties
from tfp_bprune.plot.curves import bands
from tfp_bprune.plot.examples import examples
from tfp_bprune.plot.searched import front, sensitivity
from tfp_bprune.plot.studied import against, lines, losses, over_seeds, points, ratios_by_layer, shares
from tfp_bprune.plot.sweep import histogram, sweep
from tfp_bprune.plot.training import divergences, history
from tfp_bprune.plot.units import units
from tfp_bprune.plot.weights import signal_to_noise, sparsity

__all__ = [
    "against",
    "bands",
    "by_class",
    "calibration_curves",
    "divergences",
    "examples",
    "front",
    "histogram",
    "history",
    "latencies",
    "lines",
    "losses",
    "over_seeds",
    "points",
    "ratios_by_layer",
    "reliability",
    "risk_coverage",
    "risk_curves",
    "sensitivity",
    "shares",
    "signal_to_noise",
    "sizes",
    "sparsity",
    "sweep",
    "uncertainties",
    "units",
]
