"""A network at its mean, under draws, or with means and variances: what an export computes."""

from tfp_bprune.prediction.predict import Predictor

__all__ = ["Predictor"]
