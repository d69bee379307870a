"""Searches of priors and training settings, with training, by Keras Tuner."""

from tfp_bprune.trials._keras_tuner import keras_tuner
from tfp_bprune.tuning.tuner import hyper_model, tune

__all__ = ["hyper_model", "keras_tuner", "tune"]
