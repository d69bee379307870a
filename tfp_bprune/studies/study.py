"""What all studies share: settings, networks trained and measured, and the files that come out."""

from __future__ import annotations

import importlib
import math
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.evaluation.sweep import machine
from tfp_bprune.files.reading import check
from tfp_bprune.files.runs import Run, finite, versions, write_atomically, write_json
from tfp_bprune.files.schemas import NUMBER, listing, record
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import BUDGETS, STUDIES
from tfp_bprune.studies.networks import TIMES, Spec
from tfp_bprune.studies.pool import complete
from tfp_bprune.studies.worker import Task, result_of
from tfp_bprune.types import BpruneError, Json, names_of

WITH_MODELS = ("scale", "units")  # studies of several networks, of which some can be chosen


@dataclass(frozen=True)
class Settings:
    """How a study is run.

    Attributes:
      name: of the study.
      out: folder for its text, table and pictures.
      datasets: what to train on; empty for the study's own choice at this budget.
      seeds: how many, from 0 on; 0 for the study's own choice.
      budget: "quick" shows that all works, in about a minute; "full" is the study.
      epochs: instead of the study's own number.
      jobs: networks at once, each in a fresh process, so that a script needs `if __name__ == "__main__":` around what calls
        this; 0 for one after the other in this process.
      data_dir: TensorFlow Datasets' folder.
      networks: store of trained networks, which studies share; by default `out`/networks.
      models: which of the study's networks; empty for all.
    """

    name: str
    out: Path
    datasets: tuple[str, ...] = ()
    seeds: int = 0
    budget: str = "full"
    epochs: int | None = None
    jobs: int = 1
    data_dir: Path | None = None
    networks: Path | None = None
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for several in ("datasets", "models"):
            object.__setattr__(self, several, names_of(getattr(self, several), several))
        if self.name not in STUDIES:
            raise BpruneError(f"unknown study {self.name!r}: expected one of {', '.join(STUDIES)}")
        if self.budget not in BUDGETS:
            raise BpruneError(f"unknown budget {self.budget!r}: expected one of {', '.join(BUDGETS)}")
        if self.models and self.name not in WITH_MODELS:
            raise BpruneError(f"study {self.name!r} has one kind of network: leave the models out")
        if self.seeds < 0 or self.jobs < 0 or (self.epochs is not None and self.epochs < 1):
            raise BpruneError(
                f"seeds, jobs and epochs must not be negative, nor epochs 0: got {self.seeds}, {self.jobs} and {self.epochs}"
            )

    @property
    def quick(self) -> bool:
        """Whether the budget is the small one."""
        return self.budget == "quick"

    @property
    def store(self) -> Path:
        """Where networks and measurements are kept."""
        return self.networks or self.out / "networks"

    @property
    def threads(self) -> int:
        """TensorFlow's threads of each job, so that all jobs together take the cores that there are."""
        return max(1, len(os.sched_getaffinity(0)) // max(1, self.jobs))

    @property
    def command(self) -> str:
        """The command that runs the study again, without the folders of this machine."""
        words = ["tfp-bprune", "study", self.name]
        words += ["--dataset", *self.datasets] if self.datasets else []
        words += ["--model", *self.models] if self.models else []
        words += ["--seeds", str(self.seeds)] if self.seeds else []
        words += ["--budget", self.budget]
        words += ["--epochs", str(self.epochs)] if self.epochs else []
        return shlex.join([*words, "--jobs", str(self.jobs), "--data-dir", "DIR", "--out", "OUT"])

    def datasets_or(self, full: Sequence[str], quick: Sequence[str] = ("digits",)) -> tuple[str, ...]:
        """The datasets asked for, or else the study's own."""
        return self.datasets or tuple(quick if self.quick else full)

    def models_or(self, full: Sequence[str]) -> tuple[str, ...]:
        """The networks asked for among those of the study, or else all.

        Raises:
          BpruneError: one that the study has not.
        """
        for name in self.models:
            if name not in full:
                raise BpruneError(f"study {self.name!r} has no network {name!r}: expected some of {', '.join(full)}")
        return self.models or tuple(full)

    def seeds_or(self, full: int) -> range:
        """The seeds asked for, or else the study's own number of them; one at the small budget."""
        return range(self.seeds or (1 if self.quick else full))


@dataclass(frozen=True)
class Found:
    """A trained network as a study sees it.

    Attributes:
      spec: the network.
      measured: what the study's `measure` found.
      history: a row an epoch.
      seconds, threads: of its training.
      epoch_seconds: what an epoch takes undisturbed: the first decile over epochs, since other work on the machine makes
        some of them longer. Both are not a number where a network came into the store without its times.
    """

    spec: Spec
    measured: Json
    history: list[Json]
    seconds: float
    threads: int
    epoch_seconds: float


@dataclass(frozen=True)
class Result:
    """What a study gives.

    Attributes:
      title: of its text.
      text: Markdown; a picture NAME-x.png is named by its file.
      rows: the table, an object a row with the keys that all commands share.
      pictures: PNGs by the x of NAME-x.png.
      extra: further entries of the JSON, such as curves.
      networks: the networks that were trained.
    """

    title: str
    text: str
    rows: list[Json]
    pictures: dict[str, bytes]
    extra: Json = field(default_factory=dict)
    networks: list[Found] = field(default_factory=list)


def gather(settings: Settings, specs: Sequence[Spec], options: Json, study: str | None = None) -> list[Found]:
    """Trains and measures networks, those that the store does not hold yet.

    Args:
      options: for the study's `measure(network, options)`.
      study: whose `measure` is called, by default that of the settings; "" trains only.

    Raises:
      BpruneError: a network could not be trained or measured.
    """
    name = settings.name if study is None else study
    store = settings.store
    tasks = [
        Task(spec, name, options, store, settings.data_dir, settings.threads, result_of(spec, name, options, store))
        for spec in specs
    ]
    complete(tasks, settings.jobs)
    return [_found(task) for task in tasks]


def _found(task: Task) -> Found:
    run = Run.open(task.store / task.spec.key)
    manifest, rows = run.manifest, run.read_rows(TIMES)
    check(manifest, run.path, record(("seconds", "threads")))
    check(rows, run.path / TIMES, listing(record(("epoch", "seconds"), seconds=NUMBER)))
    times = [row["seconds"] for row in rows]
    undisturbed = float(np.quantile(times, 0.1)) if times else math.nan
    seconds = manifest["seconds"] or math.nan
    return Found(task.spec, task.measured(), run.read_rows(), seconds, manifest["threads"], undisturbed)


def run_study(settings: Settings) -> Json:
    """Runs a study and writes NAME.md, NAME.json and NAME-*.png.

    Returns:
      The content of NAME.json: `machine`, `command`, `versions`, `rows`, `networks`, and what else the study keeps.
    """
    result: Result = importlib.import_module(f"tfp_bprune.studies.{settings.name}").run(settings)
    content: Json = {
        "study": settings.name,
        "machine": machine(),
        "command": settings.command,
        "versions": versions(),
        "budget": settings.budget,
        "rows": result.rows,
        "networks": [_trained(found) for found in result.networks],
        **result.extra,
    }
    for name, picture in result.pictures.items():
        write_atomically(settings.out / f"{settings.name}-{name}.png", picture)
    write_json(settings.out / f"{settings.name}.json", content)
    write_atomically(settings.out / f"{settings.name}.md", _document(settings, result).encode())
    return finite(content)


def _trained(found: Found) -> Json:
    about = {key: value for key, value in found.spec.to_json().items() if key != "parent"}
    about |= {"parent": found.spec.parent.key} if found.spec.parent else {}
    return {
        "name": found.spec.key,
        **about,
        "seconds": found.seconds,
        "epoch_seconds": found.epoch_seconds,
        "threads": found.threads,
    }


def _document(settings: Settings, result: Result) -> str:
    return f"# {result.title}\n\n{result.text.strip()}\n\n{_how(settings, result)}"


def _how(settings: Settings, result: Result) -> str:
    """How the figures came to be: command, versions, machine, seeds, times."""
    kinds: dict[str, list[Found]] = {}
    for found in result.networks:
        kinds.setdefault(f"{found.spec.dataset}|{found.spec.epochs}|{label(found.spec)}", []).append(found)
    rows = [
        [
            group[0].spec.dataset,
            label(group[0].spec),
            str(group[0].spec.epochs),
            str(len(group)),
            spread_of_times(group),
            _seconds(float(np.mean([found.epoch_seconds for found in group])), 1),
        ]
        for group in kinds.values()
    ]
    here = machine()
    seeds = ", ".join(str(seed) for seed in sorted({found.spec.seed for found in result.networks}))
    about = [
        f"    {settings.command}",
        f"Seeds {seeds}; {here['processor']}, {here['cores']} cores; {_threads(result.networks)}.",
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + f", {platform.system()}.",
        "Nothing was chosen on the test split. Times are of training alone, validation and checkpoints of every epoch included; "
        "an undisturbed epoch is the first decile of a run's epochs, as other work on the machine makes some of them longer.",
    ]
    table = markdown_table(
        ["dataset", "network", "epochs", "runs", "seconds a run", "seconds an epoch, undisturbed"], rows, names=2
    )
    return "## How it was made\n\n" + "\n\n".join([*about, table])


def _threads(networks: Sequence[Found]) -> str:
    counts = sorted({found.threads for found in networks})
    return f"{' or '.join(map(str, counts))} thread{'s' * (counts != [1])} for each network"


def label(spec: Spec) -> str:
    """What a person calls the network."""
    names = {"deterministic": "plain", "dropout": f"dropout {spec.dropout_rate:g}" if spec.dropout_rate else "dropout"}
    body = "-".join(map(str, spec.hidden)) if spec.hidden else (f"width {spec.width:g}" if spec.width else "")
    prior = f"{spec.prior['kind'].replace('_', ' ')} prior" if spec.prior else ""
    how = f"{100 * spec.sparsity:g} % removed {'before' if spec.parent else 'during'} training" if spec.sparsity else ""
    return " ".join(filter(None, [spec.network, body, names.get(spec.layers, spec.layers), prior, how]))


def spread_of_times(group: Sequence[Found]) -> str:
    """The mean of the runs' seconds, and the least and the most where there are several."""
    seconds = [found.seconds for found in group]
    mean = _seconds(sum(seconds) / len(seconds))
    return mean if len(group) == 1 else f"{mean} ({min(seconds):.0f} to {max(seconds):.0f})"


def _seconds(value: float, digits: int = 0) -> str:
    return "not measured" if math.isnan(value) else f"{value:.{digits}f}"


def pictures_in(name: str, pictures: dict[str, Any], captions: dict[str, str]) -> str:
    """Markdown that shows the pictures, each with its caption."""
    return "\n\n".join(f"![{captions[key]}]({name}-{key}.png)" for key in pictures)
