"""Training by `model.fit`: losses, KL schedules, callbacks, runs that resume exactly, one process or many."""

from tfp_bprune.train.callbacks import KLSchedule, RunWriter, StopAtNonFinite
from tfp_bprune.train.distribute import Distributor, Horovod, OneProcess
from tfp_bprune.train.fit import Settings, compile_model, fit
from tfp_bprune.train.loss import gaussian_nll, negative_log_likelihood

__all__ = [
    "Distributor",
    "Horovod",
    "KLSchedule",
    "OneProcess",
    "RunWriter",
    "Settings",
    "StopAtNonFinite",
    "compile_model",
    "fit",
    "gaussian_nll",
    "negative_log_likelihood",
]
