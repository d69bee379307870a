"""Trials of sparsities: what is removed in which order, what a trial measures, and the log of all."""
