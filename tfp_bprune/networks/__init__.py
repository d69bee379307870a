"""Networks by name: one body, the layers of each way to infer its weights."""

from tfp_bprune.networks.build import NETWORKS, build
from tfp_bprune.networks.twins import Twins

__all__ = ["NETWORKS", "Twins", "build"]
