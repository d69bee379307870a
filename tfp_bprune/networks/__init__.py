"""Networks by name: one body, the layers of each way to infer its weights."""

from tfp_bprune.networks.build import NETWORKS, build, usual_layers
from tfp_bprune.networks.factory import LayerFactory

__all__ = ["NETWORKS", "LayerFactory", "build", "usual_layers"]
