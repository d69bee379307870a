"""What commands read beside names, JSON and tensors: whose data, which network, which trials. Each wrong one is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile.conftest import Hostile, Refused
from tfp_bprune.cli.main import main
from tfp_bprune.files.runs import Run, sealed, sealed_tensors, tensors_to_bytes
from tfp_bprune.searching.samples import fingerprint_of
from tfp_bprune.storage import load_model
from tfp_bprune.trials.log import TrialLog
from tfp_bprune.types import BpruneError

Json = dict[str, Any]


def entry(part: str, key: str, value: Any) -> Callable[[Json], None]:
    """Puts an entry into a part of the config, or takes it out."""

    def change(config: Json) -> None:
        config[part].pop(key, None)
        config[part].update({} if value is MISSING else {key: value})

    return change


MISSING = object()
DATA: dict[str, Callable[[Json], Any]] = {
    f"{part}: {key} {'missing' if value is MISSING else str(value)[:20]}": entry(part, key, value)
    for part, key, values in (
        ("request", "dataset", (MISSING, None, 3, [], "", "../x", "/etc", "a b", "mnist/", "x" * 5000, "huggingface:evil/x",
                                "kubric:a", "gs://bucket/x", "nobody", "a\x1b[31mb", "digits\n")),
        ("request", "validation_fraction", (MISSING, None, "0.1", 1, -0.1, [], 0.999999)),
        ("request", "data_dir", (3, [], {"a": 1}, "x" * 5000)),
        ("data", "fingerprint", (MISSING, None, 3, "0" * 64)),
        ("data", "batch_size", (MISSING, None, 0, -1, 1.5, "8", 10**17)),
        ("data", "seed", (MISSING, None, -1, "0", 1.5, 10**17)),
        ("data", "task", (3, ["regression"])),
    )
    for value in values
} | {
    "request: null": lambda config: config.update(request=None),
    "request: empty": lambda config: config.update(request={}),
    "request: a list": lambda config: config.update(request=[]),
    "data: null": lambda config: config.update(data=None),
    "data: a list": lambda config: config.update(data=[1]),
    "data: empty": lambda config: config.update(data={}),
    "a list": lambda config: [config],
    "null": lambda config: [],
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_data_of_a_run_that_are_none(kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    hostile.config(DATA[kind])
    refused("sweep", hostile.run, "--sparsity", 0.5)
    assert not (hostile.run / "exports").exists()


@pytest.mark.parametrize("command", ["prune", "search", "export", "evaluate", "train"])
def test_every_command_that_wants_data_says_so(
    command: str, hostile: Hostile, refused: Refused, tmp_path: Path
) -> None:
    hostile.config(entry("data", "batch_size", MISSING))
    words: dict[str, list[object]] = {
        "prune": ["--sparsity", 0.5, "--recalibrate", "mean", "--out", tmp_path / "out"],
        "search": [], "export": ["--data-dir", tmp_path, "--out", tmp_path / "out"], "evaluate": [],
    }  # fmt: skip
    if command == "train":
        assert "started with other data" in refused("train", "--hidden", 3, "--resume", "--out", hostile.run)
    else:
        assert "batch_size" in refused(command, hostile.run, *words[command])
    assert not (tmp_path / "out").exists()


def told(**heads: Any) -> Callable[[Json], Any]:
    return lambda config: config.update(heads=heads)


HEADS: dict[str, Callable[[Json], Any]] = {
    "null": lambda config: config.update(heads={"b": None}), "a list": lambda config: config.update(heads=[]),
    "no task": told(b={}), "another task": told(b={"task": "evil"}), "a list for a task": told(b={"task": ["binary"]}),
    "words for a switch": told(b={"task": "classification", "logits": "yes"}),
    "one that the network has not": told(b={"task": "binary", "logits": True}),
    "more": told(b={"task": "classification", "logits": True, "evil": 1}),
    "of another output": told(c={"task": "classification", "logits": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_meanings_of_outputs_that_are_none(kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    hostile.config(HEADS[kind])
    refused("export", hostile.run, "--no-score", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def layer(config: Json, name: str) -> Json:
    return next(one for one in config["architecture"]["config"]["layers"] if one["config"]["name"] == name)


def argument(name: str, key: str, value: Any) -> Callable[[Json], Any]:
    return lambda config: layer(config, name)["config"].update({key: value})


def many(config: Json) -> None:
    layers = config["architecture"]["config"]["layers"]
    layers[2:2] = [json.loads(json.dumps(layer(config, "a")).replace('"a"', f'"a{i}"')) for i in range(5000)]


def wide(config: Json) -> None:
    made = {"module": "keras.layers", "class_name": "UpSampling2D", "registered_name": None}
    sizes = {
        "name": "w",
        "trainable": True,
        "dtype": "float32",
        "size": [50_000, 50_000],
        "data_format": "channels_last",
    }
    config["architecture"]["config"]["layers"].insert(1, made | {"config": sizes | {"interpolation": "nearest"}})


NETWORKS: dict[str, Callable[[Json], Any]] = {
    **{f"prior: {value!r:.40}": argument("a", "prior", value) for value in (
        "evil", 3, [], {}, {"kind": "evil"}, {"kind": ["ard"]}, {"kind": "ard", "groups": "evil"}, {"kind": "ard", "groups": ["input"]},
        {"kind": "ard", "evil": 1}, {"kind": "scale_mixture", "pi": 2}, {"kind": "scale_mixture", "pi": "x"}, {"kind": "normal", "scale": -1},
        {"kind": "normal", "scale": 0}, {"kind": "horseshoe", "tau0": -1}, {"kind": "horseshoe", "tau0": 1e300},
        {"kind": "centred", "prior": {"kind": "ard"}}, {"kind": "centred", "prior": {"kind": "centred", "prior": "evil"}})},
    **{f"posterior: {value!r}": argument("a", "posterior", value) for value in ("evil", 3, [], "scaled", {"kind": "normal"})},
    **{f"seed: {value!r}": argument("a", "seed", value) for value in ("x", [], None, {})},
    **{f"rho_init: {value!r}": argument("a", "rho_init", value) for value in ("x", None, 1e5, [])},
    "five thousand layers": many, "an image of 10^10 pixels": wide,
    "another layer's weights": argument("a", "units", 4), "a mixture's weights": argument("a", "prior", {"kind": "normal_jeffreys"}),
    "centres that are not stored": argument("a", "own_prior_loc", True),
    "no architecture": lambda config: config.pop("architecture") and None,
}  # fmt: skip


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_that_are_none(kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    hostile.config(NETWORKS[kind])
    refused("prune", hostile.run, "--sparsity", 0.5, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_run_unchanged_is_pruned(hostile: Hostile, tmp_path: Path) -> None:
    assert main(["prune", str(hostile.run), "--sparsity", "0.5", "--out", str(tmp_path / "out")]) == 0


STATES = {
    "NaN": np.full(3, np.nan, np.float32), "infinite": np.full(3, np.inf, np.float32), "float64": np.ones(3),
    "int32": np.ones(3, np.int32), "longer": np.ones(4, np.float32), "none": np.ones(0, np.float32), "flat": np.ones((), np.float32),
}  # fmt: skip


@pytest.mark.parametrize("prior", ["normal_jeffreys", "horseshoe", "centred", "ard"])
@pytest.mark.parametrize("kind", STATES)
def test_variables_of_priors_that_are_none(
    kind: str, prior: str, hostile: Hostile, refused: Refused, tmp_path: Path
) -> None:
    groups = {"groups": "output"} if prior != "centred" else {}
    for name in ("a", "b"):
        of = {"own_prior_loc": True, "prior": {"kind": "normal"}} if prior == "centred" else {}
        hostile.config(lambda config: layer(config, name)["config"].update({"prior": {"kind": prior, **groups}} | of))  # noqa: B023
    parts = {"loc": np.zeros((64, 3), np.float32), "rho": np.zeros((64, 3), np.float32), "mask": np.ones((64, 3), bool)}
    own = (
        {"prior_loc": STATES[kind]} if prior == "centred" else {"made_z_loc": STATES[kind], "made_z_rho": STATES[kind]}
    )
    arrays = {f"{i:04d}/a/kernel_{part}": array for i, (part, array) in enumerate({**parts, **own}.items())}
    hostile.put("weights/model.safetensors", tensors_to_bytes(arrays))
    refused("prune", hostile.run, "--sparsity", 0.5, "--out", tmp_path / "out")


def shrunk(change: Callable[[Json], Any]) -> Callable[[Hostile], None]:
    """What the network is since it shrank, beside the checkpoint."""

    def make(hostile: Hostile) -> None:
        architecture = json.loads((hostile.run / "config.json").read_text())["architecture"]
        changed = change(architecture)
        content = json.dumps(architecture if changed is None else changed).encode()
        hostile.put("weights/epoch-00001.json", content)
        hostile.seal(lambda manifest: manifest.update(architecture="weights/epoch-00001.json"))

    return make


def of(name: str, **arguments: Any) -> Callable[[Json], Any]:
    return lambda architecture: layer({"architecture": architecture}, name)["config"].update(arguments)


SHRUNK: dict[str, Callable[[Hostile], None]] = {
    "a list": shrunk(lambda architecture: [1]), "empty": shrunk(lambda architecture: {}), "text": shrunk(lambda architecture: "x"),
    "units of 1e8": shrunk(of("a", units=100_000_000)), "other units": shrunk(of("a", units=2)), "no units": shrunk(of("a", units=0)),
    "a Lambda": shrunk(lambda architecture: layer({"architecture": architecture}, "a").update(class_name="Lambda", module="keras.layers")),
    "the config": lambda hostile: hostile.seal(lambda manifest: manifest.update(architecture="config.json")),
    "nowhere": lambda hostile: hostile.seal(lambda manifest: manifest.update(architecture="weights/nowhere.json")),
    "outside": lambda hostile: hostile.seal(lambda manifest: manifest.update(architecture="../outside/victim.txt")),
    "a number": lambda hostile: hostile.seal(lambda manifest: manifest.update(architecture=3)),
    "the weights": lambda hostile: hostile.seal(lambda manifest: manifest.update(architecture="weights/model.safetensors")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHRUNK)
def test_networks_that_shrank_to_none(kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    SHRUNK[kind](hostile)
    refused("prune", hostile.run, "--sparsity", 0.5, "--out", tmp_path / "out")


@pytest.fixture
def searched(hostile: Hostile) -> Path:
    """A folder like that of a finished search of the run, of one trial."""
    out = hostile.run / "search"
    row = {"trial": 0, "phase": "global", "ranking": "score", "counts": {"a/kernel": 9, "b/kernel": 9}, "excess": 0.0, "nonzeros": 18.0,
           "bytes": 9.0, "latency": 9.0, "accuracy": 0.5, "accuracy_drop": 0.1, "nll": 1.0}  # fmt: skip
    TrialLog(out / "trials.jsonl").append(row)
    facts = {"network": fingerprint_of(load_model(hostile.run).model), "criterion": None}
    (out / "settings.json").write_bytes(sealed(facts))
    (out / "search.json").write_bytes(sealed({"front": [{"point": 1, "trial": 0}]}))
    return out


def trial(**changes: Any) -> Callable[[Path], None]:
    """Another trial in the place of the first."""

    def make(out: Path) -> None:
        [row] = TrialLog(out / "trials.jsonl").rows
        (out / "trials.jsonl").unlink()
        TrialLog(out / "trials.jsonl").append({k: v for k, v in (row | changes).items() if v is not MISSING})

    return make


def settings(**changes: Any) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        stored = json.loads((out / "settings.json").read_text()) | changes
        (out / "settings.json").write_bytes(sealed({k: v for k, v in stored.items() if v is not MISSING}))

    return make


def result(front: Any) -> Callable[[Path], None]:
    return lambda out: (out / "search.json").write_bytes(sealed({"front": front})) and None


def scores(**arrays: np.ndarray) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        trial(ranking="refined")(out)
        (out / "scores.safetensors").write_bytes(sealed_tensors({k.replace("__", "/"): v for k, v in arrays.items()}))

    return make


SEARCHED: dict[str, Callable[[Path], None]] = {
    **{f"trial: {key} {'missing' if value is MISSING else str(value)[:20]}": trial(**{key: value}) for key, values in {
        "counts": (MISSING, [], {}, {"a/kernel": 9}, {"a/kernel": 9, "b/kernel": 9, "c/kernel": 9},
                   *({"a/kernel": count, "b/kernel": 9} for count in (-1, 10**15, 1.5, "9", None))),
        "ranking": (MISSING, "evil", 3, "refined", ["score"]), "phase": (MISSING, 3), "accuracy": (MISSING, 7, "x", None), "nonzeros": (MISSING, "x"),
        "excess": (MISSING, None, "x"), "bytes": (MISSING, None), "latency": (MISSING, []),
    }.items() for value in values},
    **{f"settings: {key} {'missing' if value is MISSING else str(value)[:20]}": settings(**{key: value}) for key, values in {
        "network": (MISSING, 3, "0" * 64, None), "criterion": ("evil", 3, ["snr"], {}), "granularity": ("evil", 3, None, ["unit"], "unit"),
    }.items() for value in values},
    **{f"result: {str(front)[:30]}": result(front) for front in (
        None, 3, {}, [], [1], [None], [{}], [{"point": 1}], [{"point": 1, "trial": 7}], [{"point": 1, "trial": -1}], [{"point": "1", "trial": 0}],
        [{"point": 1, "trial": 10**15}], [{"point": 2, "trial": 0}])},
    "scores: none": scores(), "scores: of another kernel": scores(c__kernel=np.ones((64, 3))),
    "scores: of other sizes": scores(a__kernel=np.ones((3, 64)), b__kernel=np.ones((3, 10))),
    "scores: NaN": scores(a__kernel=np.full((64, 3), np.nan), b__kernel=np.ones((3, 10))),
    "scores: words": lambda out: (trial(ranking="refined")(out), (out / "scores.safetensors").write_bytes(b"{}"))[0],
}  # fmt: skip


@pytest.mark.parametrize("kind", SEARCHED)
def test_searches_that_are_none(kind: str, hostile: Hostile, searched: Path, refused: Refused, tmp_path: Path) -> None:
    SEARCHED[kind](searched)
    before = {path.name: path.read_bytes() for path in searched.iterdir()}
    refused("search", hostile.run, "--export", 1, "--to", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in searched.iterdir()} == before
    assert not (tmp_path / "out").exists()


def test_the_search_unchanged_is_exported(hostile: Hostile, searched: Path, tmp_path: Path) -> None:
    assert main(["search", str(hostile.run), "--export", "1", "--to", str(tmp_path / "out")]) == 0


UNITS: dict[str, Json] = {
    "as many weights as there are": {"a/kernel": 192, "b/kernel": 30},
    "another layer": {"b/kernel": 3},
    "none": {},
    "fewer than none": {"a/kernel": -1},
}


@pytest.mark.parametrize("kind", UNITS)
def test_searches_of_units_that_are_none(
    kind: str, hostile: Hostile, searched: Path, refused: Refused, tmp_path: Path
) -> None:
    settings(granularity="unit")(searched)
    trial(counts=UNITS[kind])(searched)
    refused("search", hostile.run, "--export", 1, "--to", tmp_path / "out")


LAYER = {"prunable": 1, "nonzeros": 1, "sparsity": 0.0}
EXPORTS: dict[str, Any] = {
    "layers": [{"a": LAYER | one} for one in ({"taken": -1}, {"taken": "x"}, {"shape": [0]}, {"form": 3}, {"break_even": 3})],
    "data": [{}, 3, {"batch_size": 0}, None], "request": [{}, None, {"dataset": "../x", "validation_fraction": 0.1}],
    "inputs": [{"inputs": {"shape": [9, 9, 1], "dtype": "float32"}}, {"inputs": {"shape": [8, 8, 1], "dtype": "evil"}}, {"a": {}}, []],
    "outputs": [{"b": 3}, []], "predictive": ["evil", None], "export_format": ["evil", "onnx", "../x", None], "kind": ["run", "model"],
    "nonzeros": [None, "x"], "sparsity": [None], "bytes": [None], "files": [{}],
}  # fmt: skip


@pytest.fixture(scope="module")
def served(stranger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the run."""
    out = tmp_path_factory.mktemp("served") / "mean"
    assert main(["export", str(stranger), "--no-score", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, vs in EXPORTS.items() for v in vs], ids=lambda v: str(v)[:40]
)
def test_exports_that_are_none(field: str, value: Any, served: Path, refused: Refused, tmp_path: Path) -> None:
    hostile = Hostile(Path(shutil.copytree(served, tmp_path / "export")), tmp_path / "outside")
    hostile.seal(lambda manifest: manifest.update({field: value}))
    refused("evaluate", hostile.run)
    assert hostile.untouched()


TUNED = {
    "settings.json": "settings",
    "random/oracle.json": "oracle",
    "random/tuner0.json": "tuner",
    "random/trial_0/trial.json": "trial",
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuning of one trial."""
    out = tmp_path_factory.mktemp("tuned") / "tune"
    assert main(["tune", *TUNE, "--out", str(out)]) == 0
    return out


TUNE = [
    "--dataset",
    "digits",
    "--method",
    "random",
    "--trials",
    "1",
    "--epochs",
    "1",
    "--hidden",
    "2",
    "--batch-size",
    "500",
]
VALUES: dict[str, Any] = {"empty": {}, "lists": {"ongoing_trials": [1], "trials": [2], "hyperparameters": [3], "values": [4]},
                          "words": {"ongoing_trials": "x", "hyperparameters": "x", "trials": "x", "status": "evil"}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in TUNED for v in (*VALUES, "raw", "a link") if "tuner0" not in n or v not in VALUES],
)
def test_tunings_that_are_none(name: str, value: str, tuned: Path, refused: Refused, tmp_path: Path) -> None:
    hostile = Hostile(Path(shutil.copytree(tuned, tmp_path / "tune")), tmp_path / "outside")
    path = hostile.run / name
    assert path.is_file(), sorted(hostile.run.rglob("*"))
    if value == "a link":
        path.unlink()
        path.symlink_to(hostile.outside / "victim.txt")
    else:
        path.write_bytes(b"[]" if value == "raw" else sealed(VALUES[value]))
    refused("tune", *TUNE, "--trials", 2, "--out", hostile.run)
    assert hostile.untouched()


def test_a_demo_of_a_stranger_is_not_taken_for_ones_own(hostile: Hostile, refused: Refused) -> None:
    hostile.config(lambda config: config.update(request=None))
    refused("demo", "--json", "-", "--out", hostile.run)
    assert Run(hostile.run).exists


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The first task of a study."""
    tasks: list[Any] = []
    patch = pytest.MonkeyPatch()
    patch.setattr("tfp_bprune.studies.study.complete", lambda found, jobs: tasks.extend(found))
    assert main([*STUDY, "--out", str(tmp_path_factory.mktemp("study"))]) == 2  # nothing is in its store
    patch.undo()
    return tasks[0]


STUDY = ["study", "criteria", "--budget", "quick", "--jobs", "0"]
STORED = {"a list": b"[]", "words": b"garbage", "nothing": b"", "deep": b"[" * 10_000, "no files": sealed({"format": 2}),
          "seconds of text": sealed({"format": 2, "files": {}, "seconds": "x"}),
          "a file outside": sealed({"format": 2, "files": {"../x": {"bytes": 1, "sha256": "0" * 64}}, "seconds": 1.0})}  # fmt: skip


@pytest.mark.parametrize("kind", STORED)
def test_stores_of_networks_that_are_none(kind: str, task: Any, refused: Refused, tmp_path: Path) -> None:
    place = tmp_path / "networks" / task.spec.key
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(STORED[kind])
    refused(*STUDY, "--out", tmp_path / "out", "--networks", tmp_path / "networks")


MEASURED = {"a list": [], "null": None, "nothing": {}, "another hash": {"found": {}, "sha256": "0" * 64}, "no hash": {"found": {}},
            "found a list": {"found": [], "sha256": "0" * 64}}  # fmt: skip


@pytest.mark.parametrize("kind", MEASURED)
def test_measurements_that_are_none(kind: str, task: Any, tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text(json.dumps(MEASURED[kind]))
    with pytest.raises(BpruneError, match="changed or damaged"):
        replace(task, result=tmp_path / "measured.json").measured()


@pytest.mark.parametrize("field", ["files", "inputs", "predictive", "export_format", "kind", "layers"])
def test_benches_of_exports_that_are_none(field: str, served: Path, refused: Refused, tmp_path: Path) -> None:
    hostile = Hostile(Path(shutil.copytree(served, tmp_path / "export")), tmp_path / "outside")
    hostile.seal(lambda manifest: manifest.update({field: EXPORTS[field][0]}))
    refused("bench", hostile.run, "--batch", 1, "--rounds", 1)
