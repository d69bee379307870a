"""Removal of weights that carry no signal: scores, masks, and a pruned model with a counted report."""

from tfp_bprune.pruning.callback import GradualPruning, KeepPruned
from tfp_bprune.pruning.dead import remove_dead
from tfp_bprune.pruning.prune import prune
from tfp_bprune.pruning.report import LayerSparsity, Report
from tfp_bprune.pruning.schedule import polynomial
from tfp_bprune.pruning.scores import decibel
from tfp_bprune.pruning.select import scores_of
from tfp_bprune.pruning.shrink import Shrink
from tfp_bprune.pruning.units import units_table

__all__ = [
    "GradualPruning",
    "KeepPruned",
    "LayerSparsity",
    "Report",
    "Shrink",
    "decibel",
    "polynomial",
    "prune",
    "remove_dead",
    "scores_of",
    "units_table",
]
