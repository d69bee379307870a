"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tfp_bprune.types import Json

Column = tuple[str, Callable[[Json], Any]]
_UNBOUNDED = 10_000  # characters


def _number(key: str, digits: int) -> Callable[[Json], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:.{digits}f}"


def _latency(key: str, batch: str) -> Callable[[Json], str]:
    return lambda row: f"{row[key][batch]:.2f}" if batch in row.get(key, {}) else ""


def human_bytes(count: float) -> str:
    """A size as a person reads it.

    >>> human_bytes(2_560_000)
    '2.6 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def payload(row: Json) -> str:
    """Bytes of the weights alone, of a manifest or row that says them; the rest of the files is the graph.

    >>> payload({"bytes": 48_000, "payload_bytes": 2048})
    '2.0 kB'
    """
    return human_bytes(row["payload_bytes"]) if "payload_bytes" in row else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A table in Markdown; the first `names` columns are of words and stand left.

    >>> print(markdown_table(["method", "accuracy"], [["sgd", "0.98"]]))
    | method | accuracy |
    |:---|---:|
    | sgd | 0.98 |
    """
    lines = ["| " + " | ".join(header) + " |", "|" + ":---|" * names + "---:|" * (len(header) - names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


CLASSIFICATION: list[Column] = [
    ("sparsity", lambda row: f"{100 * row['sparsity']:.1f} %"),
    ("accuracy", _number("accuracy", 4)),
    ("NLL", _number("nll", 4)),
    ("ECE", _number("ece", 4)),
    ("accuracy, sampled", _number("sampled_accuracy", 4)),
    ("ECE, sampled", _number("sampled_ece", 4)),
    ("bytes", lambda row: human_bytes(row["bytes"])),
    ("of weights", payload),
    ("ms, batch 1", _latency("latency_ms", "1")),
    ("ms, batch 256", _latency("latency_ms", "256")),
]
REGRESSION: list[Column] = [
    ("sparsity", CLASSIFICATION[0][1]),
    ("RMSE", _number("rmse", 3)),
    ("NLL", _number("nll", 4)),
    ("95 % coverage", _number("coverage", 3)),
    ("weights std", _number("sampled_weights_std", 3)),
    *CLASSIFICATION[6:],
]


SCORES: list[Column] = [
    ("accuracy", _number("accuracy", 4)),
    ("RMSE", _number("rmse", 3)),
    ("NLL", _number("nll", 4)),
    ("ECE", _number("ece", 4)),
]
BENCH: list[Column] = [
    ("export", lambda row: row["label"]),
    ("format", lambda row: row["format"]),
    ("predictive", lambda row: row["predictive"]),
    ("bytes", lambda row: human_bytes(row["bytes"])),
    ("of weights", payload),
    *SCORES,
    ("batch", lambda row: str(row["batch"])),
    ("median ms", _number("latency_ms", 3)),
    ("p95 ms", _number("p95_ms", 3)),
    ("examples / s", _number("throughput", 0)),
]
_OF_AN_EXPORT = 9  # so many columns of BENCH say the same at every batch size


def columns_for(rows: list[Json]) -> list[Column]:
    """The columns that these rows have something to show in."""
    columns = REGRESSION if rows and "rmse" in rows[0] else CLASSIFICATION
    if rows and not {"rmse", "accuracy"} & set(rows[0]):  # several outputs
        found = [key for key in rows[0] if key.endswith(("_accuracy", "_rmse")) and not key.startswith("sampled_")]
        columns = [CLASSIFICATION[0], *((key.replace("_", " "), _number(key, 4)) for key in found), *CLASSIFICATION[6:]]
    return [(title, cell) for title, cell in columns if any(cell(row) for row in rows)]


def fitting(part: Any, console: Console) -> list[Any]:
    """What is printed, in as many parts as it takes: of a table wider than the console blocks of columns, each with the first."""
    unbounded = console.options.update(
        max_width=_UNBOUNDED
    )  # else a table is said to be as wide as the console at most

    def fits(table: Table) -> bool:
        return console.measure(table, options=unbounded).minimum <= console.width

    if not isinstance(part, Table) or fits(part):
        return [part]
    first, *others = part.columns
    blocks: list[list[Any]] = [[first]]
    for column in others:
        wider = [*blocks[-1], column]
        if len(blocks[-1]) > 1 and not fits(_of_columns(wider)):
            blocks.append([first])
        blocks[-1].append(column)
    return [_of_columns(block) for block in blocks]


def _of_columns(columns: Sequence[Any]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column.header, justify=column.justify)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def sweep_table(result: Json) -> Table:
    """A sweep as a table for the terminal."""
    table = Table(title=None)
    columns = columns_for(result["rows"])
    for title, _ in columns:
        table.add_column(title, justify="right")
    for row in result["rows"]:
        table.add_row(*[cell(row) for _, cell in columns])
    return table


def bench_table(result: Json) -> Table:
    """Exports side by side; what is the same at every batch size is said once."""
    columns = [(title, cell) for title, cell in BENCH if any(cell(row) for row in result["rows"])]
    once = {title for title, _ in BENCH[:_OF_AN_EXPORT]}
    table = Table()
    for title, _ in columns:
        table.add_column(title, justify="left" if title in ("export", "format", "predictive") else "right")
    last = None
    for row in result["rows"]:
        new = row["export"] != last
        last = row["export"]
        table.add_row(*[cell(row) if new or title not in once else "" for title, cell in columns])
    return table


def scores_line(scores: Json) -> str:
    """Scores in one line.

    >>> scores_line({"accuracy": 0.98345, "nll": 0.05, "ece": 0.01, "examples": 100})
    'accuracy 0.9835, NLL 0.0500, ECE 0.0100'
    """
    return ", ".join(f"{title} {cell(scores)}" for title, cell in SCORES if cell(scores))


def moments_line(distance: Json) -> str:
    """How far moments were from draws, in one line.

    >>> moments_line({"examples": 90, "draws": 200, "probability": 0.0012, "epistemic_ratio": 1.0312, "rank_correlation": None})
    'moments against 200 draws, 90 examples: probability 0.0012, epistemic_ratio 1.0312'
    """
    numbers = {key: value for key, value in distance.items() if key not in ("examples", "draws")}
    flat: Json = {}
    for key, value in numbers.items():
        flat |= {f"{key} {name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    said = ", ".join(f"{key} {value:.4f}" for key, value in flat.items() if value is not None)
    return f"moments against {distance['draws']} draws, {distance['examples']} examples: {said}"


def precision_line(manifest: Json) -> str:
    """In how many bits an export holds the weights, and what that cost, in one line.

    >>> precision_line({"layers": {"a": {"precision": "int8"}, "b": {"precision": "int4"}}, "payload_bytes": 2048,
    ...     "precision_cost": {"examples": 90, "float32": {"nll": 0.1}, "rounded": {"nll": 0.11}, "disagreement": 0.0}})
    'weights: a int8, b int4; 2.0 kB; float32 and rounded, 90 examples: nll 0.1000 and 0.1100, disagreement 0.0000'
    """
    bits = [f"{name} {layer['precision']}" for name, layer in manifest["layers"].items() if "precision" in layer]
    said = f"weights: {', '.join(bits)}"
    if "payload_bytes" in manifest:
        said += f"; {human_bytes(manifest['payload_bytes'])}"
    cost = manifest.get("precision_cost")
    if cost is None:
        return said
    pairs = [f"{key} {value:.4f} and {cost['rounded'][key]:.4f}" for key, value in cost["float32"].items()]
    others = [f"{key} {cost[key]:.4f}" for key in ("disagreement", "rank_correlation") if key in cost]
    return f"{said}; float32 and rounded, {cost['examples']} examples: {', '.join([*pairs, *others])}"


def calibration_lines(manifest: Json) -> list[str]:
    """What an export was calibrated by, a line for each.

    >>> calibration_lines({"conformal": {"method": "LAC", "level": 0.9, "examples": 99, "reach": 0.4}})
    ['conformal: holds the right answer with probability 0.9 or more (LAC, 99 validation examples)']
    """
    lines = []
    if (found := manifest.get("calibration")) is not None:
        pairs = [f"{key} {found['before'][key]:.4f} to {value:.4f}" for key, value in found["after"].items()]
        lines.append(
            f"temperature {found['temperature']:.4g}: {', '.join(pairs)} ({found['examples']} validation examples)"
        )
    if (found := manifest.get("conformal")) is not None:
        lines.append(
            f"conformal: holds the right answer with probability {found['level']:g} or more ({found['method']}, "
            f"{found['examples']} validation examples)"
        )
    return lines


def products_table(layers: Json) -> Table:
    """How each dense layer of an export is multiplied, and from which sparsity on sparse would be the faster form.

    Args:
      layers: entries of a manifest's `layers` that have `form`, `shape`, `stored` and `break_even`.
    """
    batches = list(next(iter(layers.values()))["break_even"])
    table = Table("dense layer", "kernel", "sparsity", "multiplied as")
    for batch in batches:
        table.add_column(f"sparse is faster, batch {batch}", justify="right")
    for name, layer in layers.items():
        rows, columns = layer["shape"]
        size = rows * columns
        sparsity = 1 - layer["stored"] / size if size else 0.0
        cells = [_from_on(layer["break_even"][batch]) for batch in batches]
        inputs = f"{rows} taken" if layer.get("taken") else str(rows)
        table.add_row(name, f"{inputs} x {columns}", f"{100 * sparsity:.1f} %", layer["form"], *cells)
    return table


def _from_on(break_even: float) -> str:
    """A break-even sparsity as a person reads it.

    >>> _from_on(0.9312), _from_on(1.2), _from_on(-0.1)
    ('from 93.1 %', 'never', 'always')
    """
    if break_even > 1:
        return "never"
    return "always" if break_even <= 0 else f"from {100 * break_even:.1f} %"
