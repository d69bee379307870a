"""Networks by name in four twins, conversion between kinds of layers, and models as plain data."""

from tfp_bprune.models.build import NETWORKS, build
from tfp_bprune.models.convert import adopt, strip
from tfp_bprune.models.twins import Twins

__all__ = ["NETWORKS", "Twins", "adopt", "build", "strip"]
