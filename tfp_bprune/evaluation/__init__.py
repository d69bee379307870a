"""How good, how sure and how fast a model is, measured on what was exported."""

from tfp_bprune.evaluation.evaluate import Evaluation, evaluate, evaluated
from tfp_bprune.evaluation.fresh import Reloaded, reload
from tfp_bprune.evaluation.metrics import classification, multilabel, regression
from tfp_bprune.evaluation.predict import predict
from tfp_bprune.evaluation.prediction import Prediction
from tfp_bprune.evaluation.sweep import sweep

__all__ = [
    "Evaluation",
    "Prediction",
    "Reloaded",
    "classification",
    "evaluate",
    "evaluated",
    "multilabel",
    "predict",
    "regression",
    "reload",
    "sweep",
]
