"""How good, how sure and how fast a model is, measured on what was exported."""

from tfp_bprune.evaluation.fresh import Reloaded, reload
from tfp_bprune.evaluation.metrics import classification, multilabel, regression
from tfp_bprune.evaluation.sweep import sweep

__all__ = ["Reloaded", "classification", "multilabel", "regression", "reload", "sweep"]
