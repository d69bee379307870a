"""Training by `model.fit`: losses, KL schedules, callbacks, runs that resume exactly, one process or many."""

from tfp_bprune.train.callbacks import KLSchedule, RunWriter, StopAtNonFinite
from tfp_bprune.train.distribute import (
    Distributor,
    ElasticHorovod,
    Horovod,
    OneProcess,
    detect,
    distribute,
    distributed_callbacks,
)
from tfp_bprune.train.fit import Settings, compile_model, fit
from tfp_bprune.train.loss import gaussian_nll, negative_log_likelihood

__all__ = [
    "Distributor",
    "ElasticHorovod",
    "Horovod",
    "KLSchedule",
    "OneProcess",
    "RunWriter",
    "Settings",
    "StopAtNonFinite",
    "compile_model",
    "detect",
    "distribute",
    "distributed_callbacks",
    "fit",
    "gaussian_nll",
    "negative_log_likelihood",
]
