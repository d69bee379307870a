"""Searches on Keras Tuner: sparsities within a budget without retraining, and priors with training."""

from tfp_bprune.search._keras_tuner import keras_tuner
from tfp_bprune.search.budget import Budget
from tfp_bprune.search.find import Found, Settings, analyse, search
from tfp_bprune.search.tuner import hyper_model, tune

__all__ = ["Budget", "Found", "Settings", "analyse", "hyper_model", "keras_tuner", "search", "tune"]
