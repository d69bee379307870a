"""Networks by name: one body, the layers of each way to infer its weights."""

from tfp_bprune.networks.build import NETWORKS, build, check_policy, usual_layers, usual_policy
from tfp_bprune.networks.factory import LayerFactory

__all__ = ["NETWORKS", "LayerFactory", "build", "check_policy", "usual_layers", "usual_policy"]
