"""Tables and figures from the rows of a sweep."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib import colors, image
from matplotlib.figure import Figure
from rich.table import Table

from tfp_bprune.plot import style as pictures
from tfp_bprune.reports import bench_figure, bench_table, history_figure, sweep_figure, sweep_table
from tfp_bprune.reports.tables import markdown_table, products_table

SPEED = {"bytes": 2_560_000, "latency_ms": {"1": 0.25, "256": 3.5}}
CLASSIFIED = [
    {"sparsity": s, "requested": s, "accuracy": 0.9 - s / 10, "nll": 0.1, "ece": 0.01, "sampled_accuracy": 0.5, **SPEED}
    for s in (0.0, 0.95)
]
REGRESSED = [{"sparsity": 0.5, "requested": 0.5, "rmse": 54.3, "nll": 5.1, "coverage": 0.95, **SPEED}]
SCORES = {"criterion": "snr", "edges_db": [-10.0, 0.0, 10.0], "counts": [3, 4], "cuts_db": [None, 2.0]}


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": rows, "scores": SCORES | {"cuts_db": SCORES["cuts_db"][: len(rows)]}}


def assert_png(content: bytes) -> None:
    """Reads every chunk with its checksum, and all pixels."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, pixels, kinds = 8, b"", []
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        pixels += body if kind == b"IDAT" else b""
        kinds.append(kind)
        at += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    assert len(set(zlib.decompress(pixels))) > 10


def cells(table: Table) -> list[list[str]]:
    """The header and the rows of a table."""
    return [[str(c.header) for c in table.columns], *map(list, zip(*(c.cells for c in table.columns), strict=True))]


def test_the_table_of_a_classification() -> None:
    assert cells(sweep_table(result(CLASSIFIED))) == [
        ["sparsity", "accuracy", "NLL", "ECE", "accuracy, sampled", "bytes", "ms, batch 1", "ms, batch 256"],
        ["0.0 %", "0.9000", "0.1000", "0.0100", "0.5000", "2.6 MB", "0.25", "3.50"],
        ["95.0 %", "0.8050", "0.1000", "0.0100", "0.5000", "2.6 MB", "0.25", "3.50"],
    ]


def test_the_table_of_a_regression() -> None:
    assert cells(sweep_table(result(REGRESSED))) == [
        ["sparsity", "RMSE", "NLL", "95 % coverage", "bytes", "ms, batch 1", "ms, batch 256"],
        ["50.0 %", "54.300", "5.1000", "0.950", "2.6 MB", "0.25", "3.50"],
    ]


def test_a_figure_that_is_no_number_leaves_its_cell_empty() -> None:
    # NaN and infinity are null in JSON.
    rows = [CLASSIFIED[0], CLASSIFIED[1] | {"nll": None}]
    assert cells(sweep_table(result(rows)))[2][:4] == ["95.0 %", "0.8050", "", "0.0100"]


def test_a_table_in_markdown_has_as_many_cells_in_every_line() -> None:
    assert markdown_table(["method", "by", "accuracy"], [["sgd", "unit", "0.98"]], names=2).splitlines() == [
        "| method | by | accuracy |",
        "|:---|:---|---:|",
        "| sgd | unit | 0.98 |",
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Figure]:
    """The figure that was made a PNG last; a blank one would be as good a PNG."""
    made: list[Figure] = []
    inner = pictures.png
    monkeypatch.setattr(pictures, "png", lambda figure: made.append(figure) or inner(figure))  # type: ignore[func-returns-value]
    return made.pop


def assert_shown(content: bytes, figure: Figure) -> None:
    """The colour of every series is among the pixels: the file is of this figure, and shows what is on it."""
    assert_png(content)
    pixels = image.imread(io.BytesIO(content))[..., :3].reshape(-1, 3)
    series = [line for axes in figure.axes for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert series
    for line in series:
        near = np.abs(pixels - colors.to_rgb(line.get_color())).max(1) < 0.02
        assert near.sum() > 20, line.get_label()


def test_a_blank_picture_shows_nothing(drawn: Callable[[], Figure]) -> None:
    shown = sweep_figure(result(CLASSIFIED), "title")
    figure = drawn()
    assert_shown(shown, figure)
    hidden = [line for axes in figure.axes for line in axes.lines]
    for artist in [*hidden, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        artist.set_visible(False)
    with pytest.raises(AssertionError, match="accuracy, mean"):
        assert_shown(pictures.png(figure), figure)


def lines_of(axes: Any) -> dict[str, list[float]]:
    """What is drawn by its name in the legend."""
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.lines}


@pytest.mark.parametrize("rows", [CLASSIFIED, REGRESSED, [row | {"nll": None} for row in CLASSIFIED]])
def test_the_picture_of_a_sweep_shows_its_rows(rows: list[dict[str, Any]], drawn: Callable[[], Figure]) -> None:
    content = sweep_figure(result(rows), "title")
    assert_shown(content, figure := drawn())
    quality, histogram, other = figure.axes
    key, name = ("rmse", "RMSE") if "rmse" in rows[0] else ("accuracy", "accuracy")
    assert figure.get_suptitle() == "title"
    assert lines_of(quality)[f"{name}, mean"] == [row[key] for row in rows]
    assert lines_of(other) == {"NLL, mean": [row["nll"] for row in rows]}
    [bars] = histogram.patches
    assert list(bars.get_data().values) == SCORES["counts"]
    assert [list(line.get_xdata()) for line in histogram.lines] == [[2.0, 2.0]] * (len(rows) - 1)


def test_the_picture_of_a_training_shows_its_epochs(drawn: Callable[[], Figure]) -> None:
    rows = [{"epoch": 1, "nll": 2.0, "accuracy": 0.5}, {"epoch": 2, "nll": None, "accuracy": 0.6}]
    content = history_figure(rows, "x")
    assert_shown(content, figure := drawn())
    loss, accuracy = figure.axes
    assert lines_of(loss) == {"NLL, training": [2.0, None]}
    assert lines_of(accuracy) == {"accuracy, training": [0.5, 0.6]}
    assert_png(history_figure([row | {"val_accuracy": 0.4} for row in rows], "x"))
    assert lines_of(drawn().axes[1])["accuracy, validation"] == [0.4, 0.4]


def test_the_table_of_products_says_where_sparse_begins_to_be_faster() -> None:
    layer = {"form": "sparse below batch 64", "shape": [20, 10], "stored": 20, "break_even": {"1": 0.931, "256": 1.2}}
    table = products_table({"dense_1": layer})
    assert cells(table)[1] == ["dense_1", "20 x 10", "90.0 %", "sparse below batch 64", "from 93.1 %", "never"]


BENCH: dict[str, Any] = {
    "machine": {"processor": "a processor"},
    "threads": 2,
    "rows": [
        {
            "export": f"x/{label}",
            "label": label,
            "format": "onnx",
            "predictive": "mean",
            "bytes": 2_560_000,
            "batch": batch,
        }
        | {"latency_ms": batch * 0.5, "p95_ms": batch * 1.0, "throughput": 2000.0, "accuracy": 0.9, "ece": None}
        for label in ("a", "b", "c", "d")
        for batch in (1, 32)
    ],
}


def test_the_table_of_a_bench_says_once_what_is_the_same_for_all_batches() -> None:
    table = bench_table(BENCH)
    shown = {str(column.header): list(column.cells) for column in table.columns}
    assert list(shown) == [
        "export",
        "format",
        "predictive",
        "bytes",
        "accuracy",
        "batch",
        "median ms",
        "p95 ms",
        "examples / s",
    ]
    assert shown["export"] == ["a", "", "b", "", "c", "", "d", ""]
    assert shown["accuracy"][:2] == ["0.9000", ""]
    assert shown["median ms"][:2] == ["0.500", "16.000"]
    known = bench_table(BENCH | {"rows": [row | {"payload_bytes": 2048} for row in BENCH["rows"]]})
    assert [str(column.header) for column in known.columns][3:5] == ["bytes", "of weights"]
    assert list(known.columns[4].cells)[:3] == ["2.0 kB", "", "2.0 kB"]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_picture_of_a_bench_has_a_point_for_each_row(count: int, drawn: Callable[[], Figure]) -> None:
    rows = BENCH["rows"][:count]
    content = bench_figure(BENCH | {"rows": rows})
    assert_shown(content, figure := drawn())
    [axes] = figure.axes
    points = [median for line in axes.lines if line.get_linestyle() == "None" for median in line.get_ydata()]
    assert points == [row["latency_ms"] for row in rows]
    upward = [segment[:, 1].tolist() for many in axes.collections for segment in many.get_segments()]
    assert upward == [[row["latency_ms"], row["p95_ms"]] for row in rows]


def test_reports_need_no_tensorflow() -> None:
    script = (
        "import sys, tfp_bprune.reports; print([m for m in sys.modules if m in ('tensorflow', 'tf_keras', 'keras')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
