"""From a Keras model to files that a server runs: a form each, and what they say of themselves."""

from tfp_bprune.exports import savedmodel  # noqa: F401, I001 (forms are named in the order in which they are registered)
from tfp_bprune.exports import onnx  # noqa: F401
from tfp_bprune.exports import litert  # noqa: F401
from tfp_bprune.exports import openvino  # noqa: F401
from tfp_bprune.exports.forms import Form, register_form
from tfp_bprune.exports.manifest import describe
from tfp_bprune.exports.writing import export

__all__ = ["Form", "describe", "export", "register_form"]
