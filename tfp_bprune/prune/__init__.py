"""Removal of weights that carry no signal: scores, masks, and a pruned model with a counted report."""

from tfp_bprune.prune.prune import LayerSparsity, Report, prune

__all__ = ["LayerSparsity", "Report", "prune"]
