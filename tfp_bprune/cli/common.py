"""What the commands share: arguments, the way to the data of a run, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from tfp_bprune.cli.choices import CRITERIA, add_choice
from tfp_bprune.files.reading import check, printable
from tfp_bprune.files.runs import finite, write_json
from tfp_bprune.files.schemas import LOADED
from tfp_bprune.files.words import renewed
from tfp_bprune.types import Aggregate, BpruneError, Counts, Granularity, Json, Precision, Scope

if TYPE_CHECKING:
    from tfp_bprune.data.splits import Splits


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2 and one line on standard error."""
        self.exit(2, f"{self.prog}: {line_of(message)}; see `{self.prog} --help`\n")


def line_of(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal acts on."""
    return printable(" ".join(text.split()))


def add_json(parser: Parser) -> None:
    """`--json`."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the result as one JSON object; - for standard output, and nothing else there",
    )


def add_data(parser: Parser) -> None:
    """`--data-dir`."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="TensorFlow Datasets' folder (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )


def add_trust(parser: Parser) -> None:
    """`--trust`."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load exports that could do more than compute, without limits: a SavedModel is a program; for your own",
    )


def add_pruning(parser: Parser) -> None:
    """`--criterion`, `--scope`, `--granularity`, `--aggregate`, `--counts` and `--inputs`."""
    rank_by = "what to rank by (default: snr, |mu| / sigma; magnitude for a network without distributions)"
    add_choice(parser, "--criterion", CRITERIA, help=rank_by)
    add_choice(parser, "--granularity", Granularity, "weight", "remove single weights, or whole neurons and filters")
    weaker = "how a unit's weights make its score (default: max, the best weight of its weaker side)"
    add_choice(parser, "--aggregate", Aggregate, "max", weaker)
    add_choice(parser, "--scope", Scope, "global", "rank all layers together, or each by itself")
    of_what = "with --granularity unit, what the sparsity is a part of (default: weights)"
    add_choice(parser, "--counts", Counts, "weights", of_what)
    inputs = "with --granularity unit, features of the input and what a dense layer reads flattened can go too"
    parser.add_argument("--inputs", action="store_true", help=inputs)


def add_precision(parser: Parser) -> None:
    """`--precision`."""
    parser.add_argument(
        "--precision",
        nargs="+",
        metavar="P",
        help="of the weights: float32, float16, int8, int4 (int2 to int8 in a SavedModel), or auto, the fewest bits that the "
        "posterior allows; of all layers, or LAYER=P ... (default: float32)",
    )


def precision_of(arguments: Any) -> Any:
    """What `add_precision` added, as the argument of `export`.

    Raises:
      BpruneError: neither one precision nor layers with one each.
    """
    given: list[str] = arguments.precision or []
    for word in given:
        if word.rsplit("=", 1)[-1] not in get_args(Precision):
            raise BpruneError(
                f"--precision {word}: expected {', '.join(get_args(Precision))}, or LAYER= and one of them"
            )
    if len(given) <= 1 and not any("=" in word for word in given):
        return given[0] if given else None
    if not all("=" in word for word in given):
        raise BpruneError(
            f"--precision {' '.join(given)}: expected one precision, or LAYER=P for each of several layers"
        )
    return dict(word.rsplit("=", 1) for word in given)


def fewer_bits(arguments: Any) -> bool:
    """Whether anything is asked for but float32."""
    return getattr(arguments, "float16", False) or precision_of(arguments) not in (None, "float32")


def pruning_of(arguments: Any) -> Json:
    """What `add_pruning` added, as keywords of `prune` and `sweep`."""
    return {
        name: getattr(arguments, name)
        for name in ("criterion", "scope", "granularity", "aggregate", "inputs", "counts")
    }


def emit(result: Json, target: str | None) -> bool:
    """Writes the JSON where `--json` says; True if that was standard output."""
    if target == "-":
        print(json.dumps(finite(result)))
    elif target is not None:
        write_json(Path(target), result)
    return target == "-"


def say(*parts: object) -> None:
    """Prints for people: to standard output, tables too."""
    from rich.console import Console

    class Plain(Console):
        """Prints what came from outside as it is: no markup, no control sequences."""

        def render_str(self, text: str, **options: Any) -> Any:
            """Cells of tables among them."""
            return super().render_str(printable(text), **options)

    console = Plain(
        highlight=False, soft_wrap=True, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140
    )
    for part in parts:
        console.print(part)


def note(text: str) -> None:
    """Prints for people what is no result, such as why something takes long: to standard error."""
    print(line_of(text), file=sys.stderr)


def data_of(config: Json, data_dir: Path | None) -> Splits:
    """The data that a run was trained on, checked against its fingerprint.

    Raises:
      BpruneError: the run does not say how its data is loaded, or the data changed since.
    """
    from tfp_bprune.data.splits import load

    request, data = config.get("request") or {}, config.get("data") or {}
    if "dataset" not in request:
        raise BpruneError("the run does not say how its data is loaded: expected one written by `tfp-bprune train`")
    check({"request": request, "data": data}, "what the run says of its data", LOADED)
    splits = load(
        request["dataset"],
        data_dir or request.get("data_dir"),
        batch_size=data["batch_size"],
        validation_fraction=request["validation_fraction"],
        seed=data["seed"],
    )
    if splits.info.fingerprint != data.get("fingerprint"):
        raise BpruneError(
            f"dataset {request['dataset']!r} is not what the run was trained on (fingerprints differ): give its folder with --data-dir"
        )
    return splits


def data_if_there(config: Json, data_dir: Path | None, otherwise: str) -> Splits | None:
    """As `data_of`; where the data is not at hand None, and a note that says what happens `otherwise`.

    Raises:
      BpruneError: the data is not in the folder that the user named.
    """
    try:
        return data_of(config, data_dir)
    except BpruneError as error:
        if data_dir is not None:
            raise
        note(f"{otherwise}: {error}")
        return None


def facts_of(config: Json) -> Json:
    """The keys that every row and export carries, from a run's config.

    How the weights are inferred is `inference` there, since `layers` of an export or a search holds the counts by layer.
    """
    request, data = renewed(config.get("request") or {}), config.get("data") or {}
    known = {
        "network": request.get("model"),
        "inference": request.get("layers"),
        "dataset": data.get("name"),
        "seed": data.get("seed"),
    }
    return {key: value for key, value in known.items() if value is not None}
