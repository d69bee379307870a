"""Networks by name in four twins, conversion between kinds of layers, and models as plain data."""

from tfp_bprune.models.bayesianize import bayesianize
from tfp_bprune.models.build import NETWORKS, build
from tfp_bprune.models.convert import adopt, strip
from tfp_bprune.models.recalibrate import recalibrate
from tfp_bprune.models.saved import SavedModel, load_model, save_model
from tfp_bprune.models.twins import Twins

__all__ = [
    "NETWORKS",
    "SavedModel",
    "Twins",
    "adopt",
    "bayesianize",
    "build",
    "load_model",
    "recalibrate",
    "save_model",
    "strip",
]
