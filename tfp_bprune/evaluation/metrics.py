"""How good a prediction is: `prediction.metrics`, by which exports measure what fewer bits cost too."""

from tfp_bprune.prediction.metrics import (
    BINS,
    EXTRA,
    Z_95,
    as_served,
    bin_of,
    check_probabilities,
    classification,
    expected_calibration_error,
    multilabel,
    of_outputs,
    of_probabilities,
    of_two,
    regression,
)

__all__ = [
    "BINS",
    "EXTRA",
    "Z_95",
    "as_served",
    "bin_of",
    "check_probabilities",
    "classification",
    "expected_calibration_error",
    "multilabel",
    "of_outputs",
    "of_probabilities",
    "of_two",
    "regression",
]
