"""Removal of weights that carry no signal: scores, masks, and a pruned model with a counted report."""

from tfp_bprune.prune.callback import GradualPruning, KeepPruned
from tfp_bprune.prune.prune import prune
from tfp_bprune.prune.report import LayerSparsity, Report
from tfp_bprune.prune.schedule import polynomial

__all__ = ["GradualPruning", "KeepPruned", "LayerSparsity", "Report", "polynomial", "prune"]
