"""Tables and figures from the rows of a sweep."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest

from tfp_bprune.reports import bench_figure, bench_table, history_figure, sweep_figure, sweep_markdown, sweep_table
from tfp_bprune.reports.tables import products_table

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


def test_the_markdown_table_of_a_classification() -> None:
    lines = sweep_markdown(result(CLASSIFIED)).splitlines()
    assert lines == [
        "| sparsity | accuracy | NLL | ECE | accuracy, sampled | bytes | ms, batch 1 | ms, batch 256 |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| 0.0 % | 0.9000 | 0.1000 | 0.0100 | 0.5000 | 2.6 MB | 0.25 | 3.50 |",
        "| 95.0 % | 0.8050 | 0.1000 | 0.0100 | 0.5000 | 2.6 MB | 0.25 | 3.50 |",
    ]


def test_the_markdown_table_of_a_regression() -> None:
    lines = sweep_markdown(result(REGRESSED)).splitlines()
    assert lines[0] == "| sparsity | RMSE | NLL | 95 % coverage | bytes | ms, batch 1 | ms, batch 256 |"
    assert lines[2] == "| 50.0 % | 54.300 | 5.1000 | 0.950 | 2.6 MB | 0.25 | 3.50 |"


def test_a_figure_that_is_no_number_leaves_its_cell_empty() -> None:
    # NaN and infinity are null in JSON.
    rows = [CLASSIFIED[0], CLASSIFIED[1] | {"nll": None}]
    assert "| 95.0 % | 0.8050 |  | 0.0100 |" in sweep_markdown(result(rows))


def test_the_table_for_the_terminal_has_the_same_cells() -> None:
    table = sweep_table(result(CLASSIFIED))
    assert table.row_count == 2
    assert [str(c.header) for c in table.columns] == sweep_markdown(result(CLASSIFIED)).splitlines()[0].strip(
        "| "
    ).split(" | ")


@pytest.mark.parametrize("rows", [CLASSIFIED, REGRESSED, [row | {"nll": None} for row in CLASSIFIED]])
def test_the_picture_of_a_sweep_is_a_png(rows: list[dict[str, Any]]) -> None:
    assert_png(sweep_figure(result(rows), "title"))


def test_the_picture_of_a_training_is_a_png() -> None:
    assert_png(
        history_figure([{"epoch": 1, "nll": 2.0, "accuracy": 0.5}, {"epoch": 2, "nll": None, "accuracy": 0.6}], "x")
    )


def test_the_table_of_products_says_where_sparse_begins_to_be_faster() -> None:
    layer = {"form": "sparse below batch 64", "shape": [20, 10], "stored": 20, "break_even": {"1": 0.931, "256": 1.2}}
    table = products_table({"dense_1": layer})
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["dense_1", "20 x 10", "90.0 %", "sparse below batch 64", "from 93.1 %", "never"]


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
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert list(cells) == [
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
    assert cells["export"] == ["a", "", "b", "", "c", "", "d", ""]
    assert cells["accuracy"][:2] == ["0.9000", ""]
    assert cells["median ms"][:2] == ["0.500", "16.000"]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_picture_of_a_bench_is_a_png(count: int) -> None:
    assert_png(bench_figure(BENCH | {"rows": BENCH["rows"][:count]}))


def test_reports_need_no_tensorflow() -> None:
    script = (
        "import sys, tfp_bprune.reports; print([m for m in sys.modules if m in ('tensorflow', 'tf_keras', 'keras')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
