"""From a Keras model to a small, plain SavedModel: dead units out, layers lowered, predictions named."""

from tfp_bprune.export.compact import compact
from tfp_bprune.export.manifest import describe
from tfp_bprune.export.predict import Predictor
from tfp_bprune.export.savedmodel import export

__all__ = ["Predictor", "compact", "describe", "export"]
