"""Tables and figures from JSON; no TensorFlow in here."""

from tfp_bprune.reports.figures import bench_figure, history_figure, sweep_figure
from tfp_bprune.reports.tables import bench_table, sweep_table

__all__ = ["bench_figure", "bench_table", "history_figure", "sweep_figure", "sweep_table"]
