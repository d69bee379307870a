"""The published studies as code: each runs with one command, resumes, and writes its table, text and pictures."""

from __future__ import annotations

STUDIES = {
    "compression": "dropout and Bayes by Backprop pruned without retraining, beside the published accuracies",
    "criteria": "what to rank weights by: SNR, |mu|, log q(0), KL, change of the ELBO; global and by layer",
    "retrain": "the same with retraining and with gradual pruning; at equal training time too",
    "blundell": "table 2 of Blundell et al. 2015 again: wide networks, two priors",
    "scale": "VGG-16 and ResNet-18 on CIFAR-10: accuracy, likelihood, size and speed against sparsity",
    "units": "units that leave while a network learns, by a prior over groups; and networks as small from the beginning",
    "uncertainty": "what pruning does to what a network knows: calibration, strangers, risk against coverage",
}
"""Names of the studies and what each asks; `tfp_bprune.studies.NAME` holds the study."""
BUDGETS = ("quick", "full")
