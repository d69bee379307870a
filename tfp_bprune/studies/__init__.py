"""The published studies as code: each runs with one command, resumes, and writes its table, text and pictures."""

from __future__ import annotations

STUDIES = {
    "compression": "dropout and Bayes by Backprop pruned without retraining, beside the published accuracies",
    "criteria": "what to rank weights by: SNR, |mu|, log q(0), KL, change of the ELBO; global and by layer",
}
"""Names of the studies and what each asks; `tfp_bprune.studies.NAME` holds the study."""
BUDGETS = ("quick", "full")
