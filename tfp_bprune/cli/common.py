"""What the commands share: arguments, the way to the data of a run, and what they print."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from tfp_bprune._progress import is_quiet
from tfp_bprune.cli.choices import CRITERIA, add_choice
from tfp_bprune.cli.stopped import PROGRAM
from tfp_bprune.files.reading import check, printable
from tfp_bprune.files.runs import finite, write_json
from tfp_bprune.files.schemas import LOADED
from tfp_bprune.files.words import renewed
from tfp_bprune.types import Aggregate, BpruneError, Counts, Granularity, Json, Logger, Precision, Scope, suggestion

if TYPE_CHECKING:
    from tfp_bprune.data.splits import Splits


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help in which every option that takes a value says its default."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrap = argparse.HelpFormatter if "\n" not in text else argparse.RawDescriptionHelpFormatter
        return wrap._fill_text(self, text, width, indent)  # examples keep their lines

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        takes_no_value = action.nargs == 0 or not action.option_strings
        if takes_no_value or action.required or "(default: " in text or action.default == argparse.SUPPRESS:
            return text
        values = action.default if isinstance(action.default, list) else [action.default]
        shown = " ".join(
            f"{value:g}" if isinstance(value, float) else ("none" if value is None else str(value)) for value in values
        )
        return f"{text} (default: {shown})".strip()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that names the help of its own command."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its parent, but that words which are left over are refused here, by the command that they were given to."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"unrecognized arguments: {' '.join(rest)}{suggestion(rest[0].split('=')[0], flags)}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            wrong = f"invalid choice: {value!r}{suggestion(value, action.choices)} (choose from {known})"
            raise argparse.ArgumentError(action, wrong)

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2 and one line on standard error."""
        self.exit(2, f"{self.prog}: {line_of(message)}; see `{self.prog} --help`\n")


def program() -> str:
    """The program as it can be called here: by its name if the shell finds it, else by the path that it was called by."""
    called = sys.argv[0] if Path(sys.argv[0]).name == PROGRAM else f"{sys.executable} -m tfp_bprune"
    return PROGRAM if shutil.which(PROGRAM) else called


def line_of(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal acts on."""
    return printable(" ".join(text.split()))


def add_json(parser: Parser) -> None:
    """`--json`."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the result to FILE as one JSON object; - writes it to standard output, and nothing else there",
    )


def add_data(parser: Parser) -> None:
    """`--data-dir`."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of TensorFlow Datasets (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )


def add_held_out(parser: Parser) -> None:
    """`--data-dir` and, for runs that were trained on arrays, `--data`."""
    add_data(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="data of a run that was trained on arrays: a .npz with x and y, or with x_train, y_train, x_test and y_test; or a "
        ".csv, with the target in the column y, or in the last (default: load the dataset that the run names)",
    )


def add_validation_fraction(parser: Parser) -> None:
    """`--validation-fraction`."""
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.1,
        metavar="PART",
        help="fraction of the training split to hold out",
    )


def add_logger(parser: Parser) -> None:
    """`--logger`."""
    parser.add_argument(
        "--logger",
        nargs="+",
        choices=get_args(Logger),
        metavar="NAME",
        help="also log to tensorboard, into the folder tensorboard of --out, or to mlflow, at $MLFLOW_TRACKING_URI",
    )


def add_trust(parser: Parser) -> None:
    """`--trust`."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="skip the search for harmful operations and the limits on time and memory; for exports that you wrote yourself",
    )


def add_pruning(parser: Parser) -> None:
    """`--criterion`, `--scope`, `--granularity`, `--aggregate`, `--counts` and `--inputs`."""
    rank_by = (
        "score that weights are ranked by (default: snr, |mu| / sigma; magnitude for a network without distributions)"
    )
    add_choice(parser, "--criterion", CRITERIA, help=rank_by)
    add_choice(parser, "--granularity", Granularity, "weight", "remove single weights, or whole neurons and filters")
    how = "how the scores of a unit's weights are combined; a unit's score is the lower of its incoming and outgoing scores"
    add_choice(parser, "--aggregate", Aggregate, "max", how)
    add_choice(
        parser, "--scope", Scope, "global", "rank the weights of all layers together, or of each layer separately"
    )
    of_what = "with --granularity unit: what the sparsity is a fraction of"
    add_choice(parser, "--counts", Counts, "weights", of_what)
    inputs = "with --granularity unit: also remove input features, and positions of a flattened input of a dense layer"
    parser.add_argument("--inputs", action="store_true", help=inputs)


def add_precision(parser: Parser) -> None:
    """`--precision` and `--rounding-loss`."""
    parser.add_argument(
        "--precision",
        nargs="+",
        metavar="P",
        help="precision of the stored weights: float32, float16, int8, int4 (int2 to int8 in a SavedModel), or auto, the fewest "
        "bits that the posterior allows; for all layers, or LAYER=P for each of several (default: float32)",
    )
    parser.add_argument(
        "--rounding-loss",
        type=float,
        metavar="NATS",
        help="nats of the evidence lower bound that --precision auto may lose for each weight (default: 1/24, a step as wide as the "
        "posterior; 0.5 gives the shortest description of network and data together)",
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
    """Prints for people: to standard output, tables too, in parts where they are wider than the terminal."""
    if is_quiet():
        return
    from rich.console import Console

    from tfp_bprune.reports.tables import fitting

    class Plain(Console):
        """Prints what came from outside as it is: no markup, no control sequences."""

        def render_str(self, text: str, **options: Any) -> Any:
            """Cells of tables among them."""
            return super().render_str(printable(text), **options)

    console = Plain(
        highlight=False, soft_wrap=True, markup=False, emoji=False, width=None if sys.stdout.isatty() else 140
    )
    for part in parts:
        for piece in fitting(part, console):
            console.print(piece)


def note(text: str) -> None:
    """Prints for people what is no result, such as why something takes long: to standard error."""
    if not is_quiet():
        print(line_of(text), file=sys.stderr)


def data_of(config: Json, arguments: Any) -> Splits:
    """The data that a run was trained on, checked against its fingerprint; or examples of `--data` to score on.

    Raises:
      BpruneError: the run does not say how its data is loaded, or the data changed since.
    """
    from tfp_bprune.data.from_files import read_splits
    from tfp_bprune.data.splits import load

    request, data = config.get("request") or {}, config.get("data") or {}
    if arguments.data is not None:
        if "fingerprint" not in data:
            raise BpruneError(
                f"--data {arguments.data}: the run records nothing about its data: expected a run that `fit` wrote"
            )
        return read_splits(arguments.data, data)
    if "dataset" not in request:
        raise BpruneError(
            "the run does not record how to load its data (was it trained on arrays?): give its data with --data FILE.npz"
        )
    check({"request": request, "data": data}, "what the run says of its data", LOADED)
    splits = load(
        request["dataset"],
        arguments.data_dir or request.get("data_dir"),
        batch_size=data["batch_size"],
        validation_fraction=request["validation_fraction"],
        seed=data["seed"],
        streaming=bool(request.get("streaming")),
    )
    if splits.info.fingerprint != data.get("fingerprint"):
        raise BpruneError(
            f"dataset {request['dataset']!r} is not what the run was trained on (fingerprints differ): give its folder with --data-dir"
        )
    return splits


def data_if_there(config: Json, arguments: Any, otherwise: str) -> Splits | None:
    """As `data_of`; where the data is not at hand None, and a note that says what happens `otherwise`.

    Raises:
      BpruneError: the data is not in the folder or the file that the user named.
    """
    try:
        return data_of(config, arguments)
    except BpruneError as error:
        if arguments.data_dir is not None or arguments.data is not None:
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
