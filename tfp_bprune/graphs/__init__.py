"""Keras graphs followed, copied and converted: between plain, raw and Bayesian layers, and without dead units."""

from tfp_bprune.graphs.bayesianize import bayesianize
from tfp_bprune.graphs.compact import compact
from tfp_bprune.graphs.convert import adopt, strip
from tfp_bprune.graphs.inline import inline

__all__ = ["adopt", "bayesianize", "compact", "inline", "strip"]
