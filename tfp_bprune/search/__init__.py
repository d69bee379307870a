"""Searches on Keras Tuner: sparsities within a budget without retraining, and priors with training."""

from tfp_bprune.search.budget import Budget
from tfp_bprune.search.search import Found, Settings, analyse, search

__all__ = ["Budget", "Found", "Settings", "analyse", "search"]
