"""Layers whose weights, if there are any, are not pruned: what each does to channels, constants, means and variances.

`rule_of(layer)` is the one place that tells them apart; `rule_for` adds to it, from anywhere.
"""

from tfp_bprune.layers.rules import merges, normalization, pooling
from tfp_bprune.layers.rules.activations import Elementwise, activation_name, applied, is_elementwise
from tfp_bprune.layers.rules.moves import Keeps, Moves
from tfp_bprune.layers.rules.noise import Factors, Identity, Noise, Random
from tfp_bprune.layers.rules.normals import by_quadrature, by_rectifying
from tfp_bprune.layers.rules.operations import operation_name, rule_of_call
from tfp_bprune.layers.rules.rule import LayerRule, Spread, rule_for, rule_of

__all__ = [
    "Elementwise",
    "Factors",
    "Identity",
    "Keeps",
    "LayerRule",
    "Moves",
    "Noise",
    "Random",
    "Spread",
    "activation_name",
    "applied",
    "by_quadrature",
    "by_rectifying",
    "is_elementwise",
    "merges",
    "normalization",
    "operation_name",
    "pooling",
    "rule_for",
    "rule_of",
    "rule_of_call",
]
