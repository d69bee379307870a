"""Searches for the sparsest network within a budget, without retraining."""

from tfp_bprune.claims.budget import Budget
from tfp_bprune.searching.find import Found, Settings, analyse, search

__all__ = ["Budget", "Found", "Settings", "analyse", "search"]
