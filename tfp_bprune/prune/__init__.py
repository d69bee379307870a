"""Removal of weights that carry no signal: scores, masks, and a pruned model with a counted report."""

from tfp_bprune.prune.callback import GradualPruning, KeepPruned
from tfp_bprune.prune.dead import remove_dead
from tfp_bprune.prune.prune import prune
from tfp_bprune.prune.report import LayerSparsity, Report
from tfp_bprune.prune.schedule import polynomial
from tfp_bprune.prune.scores import decibel
from tfp_bprune.prune.select import scores_of

__all__ = [
    "GradualPruning",
    "KeepPruned",
    "LayerSparsity",
    "Report",
    "decibel",
    "polynomial",
    "prune",
    "remove_dead",
    "scores_of",
]
