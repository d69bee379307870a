"""The published studies as code: each runs with one command, resumes, and writes its table, text and pictures."""

from __future__ import annotations

STUDIES = {
    "compression": "pruning without retraining: SGD, dropout and Bayes by Backprop, compared with the published accuracies",
    "criteria": "criteria for ranking weights: SNR, |mu|, log q(0), KL, change of the ELBO; over all layers and by layer",
    "retrain": "pruning with retraining and gradual pruning, also at equal training time",
    "blundell": "table 2 of Blundell et al. 2015: wide networks, two priors",
    "scale": "VGG-16 and ResNet-18 on CIFAR-10: accuracy, likelihood, size and speed against sparsity",
    "units": "whole units removed during training by a prior over groups; small networks trained from scratch",
    "uncertainty": "uncertainty of pruned networks: calibration, out-of-distribution detection, risk and coverage",
}
"""Names of the studies and what each asks; `tfp_bprune.studies.NAME` holds the study."""
BUDGETS = ("quick", "full")
