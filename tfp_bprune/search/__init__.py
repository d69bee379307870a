"""Searches on Keras Tuner: sparsities within a budget without retraining, and priors with training."""

from tfp_bprune.search._keras_tuner import keras_tuner
from tfp_bprune.search.budget import Budget
from tfp_bprune.search.tuner import hyper_model, tune
from tfp_bprune.search.within import Found, Settings, analyse, search

__all__ = ["Budget", "Found", "Settings", "analyse", "hyper_model", "keras_tuner", "search", "tune"]
