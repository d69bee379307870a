"""Models as plain data: architecture as checked JSON, weights in the fewest bytes, nothing that runs."""

from tfp_bprune.storage.keras3 import bayesianize
from tfp_bprune.storage.saved import SavedModel, load_model, save_model

__all__ = ["SavedModel", "bayesianize", "load_model", "save_model"]
