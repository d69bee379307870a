"""`tfp-bprune search`: the smallest or fastest network within a budget, found by pruning and evaluating alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.choices import CRITERIA, add_choice
from tfp_bprune.cli.common import Parser, add_held_out, add_json, data_of, emit, facts_of, say
from tfp_bprune.types import BpruneError, Granularity, Json, Order, RunError, Target

if TYPE_CHECKING:
    from tfp_bprune.data.splits import Split
    from tfp_bprune.searching import Settings

HELP = "find the smallest or fastest network within a budget"
EXAMPLE = """example:
  tfp-bprune search runs/demo --max-accuracy-drop 0.05 --trials 30
  tfp-bprune search runs/demo --sensitivity                       # prunes one layer at a time
  tfp-bprune search runs/demo --export 1 --to served/demo-1       # a point of the Pareto front, by its number
  tfp-bprune search runs/mnist --max-ece-increase 0.02 --min-ood-auroc 0.9 --ood fashion_mnist --target bytes
  tfp-bprune search runs/mnist --granularity unit --target latency
  tfp-bprune search runs/mnist --target bytes --bits
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    _add_budget(parser)
    add_choice(parser, "--target", Target, "nonzeros", "what to minimize: weights left, bytes of a file, or latency")
    parser.add_argument("--trials", type=int, default=100, help="maximum number of networks to evaluate, at least 20")
    by = "order in which the weights of a layer are removed: by score, or by score refined on training examples"
    add_choice(parser, "--order", Order, "refined", by)
    add_choice(
        parser,
        "--criterion",
        CRITERIA,
        help="score that weights are ranked by (default: snr; magnitude for a network without distributions)",
    )
    whole = "remove single weights, or whole neurons and filters; for these --target latency times exports"
    add_choice(parser, "--granularity", Granularity, "weight", whole)
    parser.add_argument(
        "--bits",
        action="store_true",
        help="with --target bytes: also search for the fewest bits of each layer's weights, 8 to 2",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the optimization and the refinement")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for trials and results; rerun the command to resume (default: RUN/search)",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="instead of a search, prune one layer at a time: a table and a heat map",
    )
    parser.add_argument(
        "--export",
        type=int,
        metavar="N",
        help="instead of a search, export point N of the Pareto front of a finished one",
    )
    parser.add_argument(
        "--to", type=Path, metavar="EXPORT", help="for --export: folder of the export, which must not exist"
    )
    add_held_out(parser)
    add_json(parser)


def _add_budget(parser: Parser) -> None:
    parser.add_argument(
        "--max-accuracy-drop",
        type=_drop,
        default=0.005,
        metavar="D",
        help="accuracy that may be lost, as a fraction: 0.005 is half a point; none sets no limit",
    )
    parser.add_argument(
        "--max-rmse-increase",
        type=float,
        metavar="R",
        help="for a regression: allowed growth of the root mean squared error, 0.05 is 5 %% (default: 0.05)",
    )
    parser.add_argument(
        "--max-ece-increase", type=float, metavar="D", help="allowed growth of the expected calibration error"
    )
    parser.add_argument(
        "--min-ood-auroc",
        type=float,
        metavar="A",
        help="least AUROC of detecting the examples of --ood by predictive entropy",
    )
    parser.add_argument(
        "--ood", metavar="DATASET", help="another dataset with examples of the same shape, whose test split is used"
    )
    parser.add_argument("--level", type=float, default=0.95, help="confidence level of the guarantee")


def _drop(word: str) -> float | None:
    return None if word == "none" else float(word)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.files.reading import check_inside
    from tfp_bprune.files.runs import Run

    out = arguments.out or check_inside(arguments.run, "search")
    if (arguments.export is None) != (arguments.to is None):
        raise BpruneError("--export N and --to EXPORT go together: give both or none")
    if arguments.sensitivity and arguments.export is not None:
        raise BpruneError("--sensitivity and --export are two jobs: give one of them")
    if Run(out).exists:
        raise BpruneError(f"{out} is a run directory: name a folder of its own for the search with --out")
    if arguments.export is not None:
        return _export(arguments, out)
    return _sensitivity(arguments, out) if arguments.sensitivity else _search(arguments, out)


def settings_of(arguments: Any) -> Settings:
    """What is asked for."""
    from tfp_bprune.searching import Budget, Settings

    conditions = (arguments.max_accuracy_drop, arguments.max_ece_increase, arguments.min_ood_auroc)
    budget = Budget(*conditions, arguments.level, arguments.max_rmse_increase)
    how = (arguments.order, arguments.criterion, arguments.seed, arguments.granularity, arguments.bits)
    return Settings(budget, arguments.target, arguments.trials, *how)


def _search(arguments: Any, out: Path) -> int:
    from tfp_bprune._progress import Bar
    from tfp_bprune.files.runs import Run, write_atomically
    from tfp_bprune.reports.search import search_figure, search_table
    from tfp_bprune.searching import search
    from tfp_bprune.searching.results import write_results
    from tfp_bprune.storage import load_model

    settings = settings_of(arguments)
    saved = load_model(arguments.run)
    data, strange = data_of(saved.config, arguments), _strange(arguments, saved.config)
    facts = {**facts_of(saved.config), "data": saved.config.get("data"), "request": saved.config.get("request")}
    with Run(out).locked(), Bar("search", settings.trials) as bar:
        found = search(
            saved.model, data, out, settings=settings, strange=strange,
            on_trial=lambda row: bar.to(row["trial"] + 1),
            on_step=lambda what: bar.to(note=what),
        )  # fmt: skip
        result = write_results(found, saved.model, data, out, settings, strange, facts)
        write_atomically(out / "search.png", search_figure(result, found.rows))
    if not emit(result, arguments.json):
        say(
            result["sentence"],
            "",
            search_table(result),
            f"trials: {out / 'trials.jsonl'}{_pace(result['speed'])}   result: {out / 'search.json'}",
        )
    return 0


def _pace(speed: Json) -> str:
    pace = speed["trials_per_second"]
    return f" ({speed['trials']}{f', {pace:.1f} a second' if pace else ', all of an earlier search'})"


def _strange(arguments: Any, config: Json) -> Split | None:
    """Test examples of the other dataset, which no network was trained on."""
    if arguments.ood is None:
        return None
    from tfp_bprune.data.splits import load

    request = config.get("request") or {}
    if arguments.ood == request.get("dataset"):
        raise BpruneError(
            f"--ood {arguments.ood} is what the run was trained on: name another dataset of the same shape"
        )
    return load(arguments.ood, arguments.data_dir or request.get("data_dir")).examples("test")


def _export(arguments: Any, out: Path) -> int:
    """One point of the front as a SavedModel."""
    from tfp_bprune.exports import export
    from tfp_bprune.exports.writing import check_new
    from tfp_bprune.files.schemas import SEARCHED_SCHEMA
    from tfp_bprune.searching.find import SETTINGS_FILE
    from tfp_bprune.searching.results import network_at, point_of, precision_of
    from tfp_bprune.searching.samples import fingerprint_of
    from tfp_bprune.storage import load_model
    from tfp_bprune.trials.log import read_sealed

    check_new(arguments.to)
    row, saved = point_of(out, arguments.export), load_model(arguments.run)
    settings = read_sealed(out / SETTINGS_FILE, SEARCHED_SCHEMA)
    if settings.get("network") != fingerprint_of(saved.model):
        raise RunError(f"{out} holds a search of another network than {arguments.run}: name the run that was searched")
    facts = {**facts_of(saved.config), "data": saved.config.get("data"), "request": saved.config.get("request")}
    pruned = network_at(saved.model, out, row, settings)
    manifest = export(pruned, arguments.to, facts=facts, precision=precision_of(row.get("bits", {})))
    if not emit(
        {"export": str(arguments.to), "point": row["point"], "trial": row["trial"], **manifest}, arguments.json
    ):
        say(f"exported point {row['point']}, {manifest['nonzeros']:,} weights left, to {arguments.to}")
    return 0


def _sensitivity(arguments: Any, out: Path) -> int:
    from tfp_bprune.files.runs import Run, write_atomically, write_json
    from tfp_bprune.reports.search import sensitivity_figure, sensitivity_table
    from tfp_bprune.searching import analyse
    from tfp_bprune.storage import load_model

    saved = load_model(arguments.run)
    with Run(out).locked():
        data = data_of(saved.config, arguments)
        rows = analyse(saved.model, data, out, arguments.criterion, arguments.granularity)
        result = {**facts_of(saved.config), "rows": rows}
        write_json(out / "sensitivity.json", result, seal=True)
        write_atomically(out / "sensitivity.png", sensitivity_figure(result))
    if not emit(result, arguments.json):
        say(sensitivity_table(result), f"table: {out / 'sensitivity.json'}   picture: {out / 'sensitivity.png'}")
    return 0
