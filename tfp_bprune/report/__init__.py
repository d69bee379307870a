"""Tables and figures from JSON; no TensorFlow in here."""

from tfp_bprune.report.figures import history_figure, sweep_figure
from tfp_bprune.report.tables import sweep_markdown, sweep_table

__all__ = ["history_figure", "sweep_figure", "sweep_markdown", "sweep_table"]
