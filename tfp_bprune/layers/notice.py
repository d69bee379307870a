"""A word to who calls Keras's `predict` on a Bayesian network, whose answers look like those of any other."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from tfp_bprune._keras import keras, tf

_SAID = "_tfp_bprune_said_what_is_drawn"


def say_what_is_drawn(training: bool) -> None:
    """Warns, once a model, where Keras's `predict` is being traced: nothing in what it gives says that it is one draw."""
    if training or tf.executing_eagerly():
        return
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_name != "predict_step":
        frame = frame.f_back
    model = None if frame is None else frame.f_locals.get("self")
    if isinstance(model, keras.Model) and not vars(model).get(_SAID):
        vars(model)[_SAID] = True  # past Keras, which would track it
        warnings.warn(
            f"`predict` of model {model.name!r} returns raw outputs under one random draw of the weights, a new draw in each call: "
            "use tfp_bprune.predict(model, x) for means over draws and their uncertainty",
            stacklevel=2,
        )
