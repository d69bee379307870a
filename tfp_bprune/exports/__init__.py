"""From a Keras model to files that a server runs: SavedModel, ONNX, LiteRT, and what they say of themselves."""

from tfp_bprune.exports.manifest import describe
from tfp_bprune.exports.savedmodel import export

__all__ = ["describe", "export"]
