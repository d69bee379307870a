"""Training by `model.fit`: losses, KL schedules, callbacks, runs that resume exactly, one process or many."""

from tfp_bprune.training.callbacks import KLSchedule, RunWriter, StopAtNonFinite
from tfp_bprune.training.distribute import (
    Distributor,
    ElasticHorovod,
    Horovod,
    OneProcess,
    detect,
    distribute,
    distributed_callbacks,
)
from tfp_bprune.training.fit import Settings, compile_model, fit
from tfp_bprune.training.loss import gaussian_nll, negative_log_likelihood
from tfp_bprune.training.recalibrate import recalibrate
from tfp_bprune.training.strategy import Strategy

__all__ = [
    "Distributor",
    "ElasticHorovod",
    "Horovod",
    "KLSchedule",
    "OneProcess",
    "RunWriter",
    "Settings",
    "StopAtNonFinite",
    "Strategy",
    "compile_model",
    "detect",
    "distribute",
    "distributed_callbacks",
    "fit",
    "gaussian_nll",
    "negative_log_likelihood",
    "recalibrate",
]
