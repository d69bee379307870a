"""The example for MLServer, run in a Python that has it: this one, or that of BPRUNE_MLSERVER_PYTHON."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import tf

EXAMPLE = Path(__file__).parents[2] / "examples/mlserver"
NAMED = os.environ.get("BPRUNE_MLSERVER_PYTHON") or (importlib.util.find_spec("mlserver") and sys.executable)
PYTHON = NAMED and os.path.abspath(NAMED)  # the server runs in another folder
MODELS = ("moments", "sampled")
CLIENTS = 10
WINDOW = 0.2  # seconds in which requests are joined: long, so that those of a test surely are

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="MLServer is not installed: BPRUNE_MLSERVER_PYTHON names a Python that has it"
)
if PYTHON and not Path(PYTHON).exists():
    raise FileNotFoundError(f"BPRUNE_MLSERVER_PYTHON names {PYTHON}, which is not there")

Ask = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


class Server(NamedTuple):
    """A running server: its ports by protocol, where it lies, and its models as TensorFlow has them to itself."""

    ports: dict[str, str]
    folder: Path
    models: dict[str, Any]


def free_ports() -> dict[str, str]:
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    names = [f"MLSERVER_{name}_PORT" for name in ("HTTP", "GRPC", "METRICS")]
    ports = {name: str(one.getsockname()[1]) for name, one in zip(names, sockets, strict=True)}
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def server(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The example as README has it: two exports of one network, and `mlserver start .`."""
    folder = Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("examples") / "mlserver"))
    for predictive in MODELS:
        bp.export(tiny_model, folder / predictive / "export", predictive=predictive, samples=8)
        settings = folder / predictive / "model-settings.json"
        settings.write_text(settings.read_text().replace('"max_batch_time": 0.002', f'"max_batch_time": {WINDOW}'))
        assert str(WINDOW) in settings.read_text()
    ports = free_ports()
    words = [str(PYTHON), "-m", "mlserver.cli.main", "start", "."]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=folder, env={**os.environ, **ports}, stdout=log, stderr=log)
    try:
        for _ in range(240):
            if status(ports, "health/ready") == 200:
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield Server(ports, folder, {name: tf.saved_model.load(str(folder / name / "export/1")) for name in MODELS})
        assert process.poll() is None, "the server ended"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def status(ports: dict[str, str], path: str) -> int:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{ports['MLSERVER_HTTP_PORT']}/v2/{path}", timeout=60
        ) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def by_http(server: Server, given: dict[str, Any]) -> dict[str, Any]:
    tensor = {key: given[key] for key in ("name", "datatype", "shape", "data")}
    body = json.dumps({"inputs": [tensor], "outputs": given.get("outputs")}).replace("NaN", "null")
    url = f"http://127.0.0.1:{server.ports['MLSERVER_HTTP_PORT']}/v2/models/{given['model']}/infer"
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        return {"code": error.code, "said": error.read().decode()}
    return {"code": "OK", "outputs": {one["name"]: one["data"] for one in outputs}}


def grpc_answers(server: Server, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    words = [str(PYTHON), str(Path(__file__).parent / "ask_grpc.py"), server.ports["MLSERVER_GRPC_PORT"]]
    done = subprocess.run(words, input=json.dumps(requests), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def http_answers(server: Server, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda given: by_http(server, given), requests))


@pytest.fixture(params=[http_answers, grpc_answers], ids=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: Server) -> Ask:
    """Sends requests, all at once, by either protocol."""
    return lambda requests: request.param(server, requests)


def request_for(model: str, x: np.ndarray, **changed: Any) -> dict[str, Any]:
    given = {"model": model, "name": "inputs", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
    return {**given, **changed}


def assert_right(server: Server, model: str, x: np.ndarray, answer: dict[str, Any]) -> None:
    """As TensorFlow answers that has the SavedModel to itself."""
    assert answer["code"] == "OK", answer
    expected = server.models[model].signatures["serving_default"](inputs=tf.constant(x))
    assert set(answer["outputs"]) == set(expected)
    for name, value in expected.items():
        found = np.array(answer["outputs"][name], np.float32).reshape(value.shape)
        np.testing.assert_allclose(found, value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_ten_clients_at_once_get_what_tensorflow_answers(
    model: str, server: Server, ask: Ask, images: np.ndarray
) -> None:
    given = [images[client : client + 1 + client % 3] for client in range(CLIENTS)]
    answers = ask([request_for(model, x, raw=client % 2) for client, x in enumerate(given)])
    for x, answer in zip(given, answers, strict=True):
        assert_right(server, model, x, answer)


def test_what_is_wrong_is_refused_alone(server: Server, ask: Ask, images: np.ndarray) -> None:
    """Each beside a right one, with which MLServer joins it to a batch."""
    x = images[:1]
    wrong = {
        "the shape [-1, 8, 8, 1] for input": request_for("moments", x, shape=[1, 64]),
        "[2, 8, 8, 1] numbers": request_for("moments", x, shape=[2, 8, 8, 1]),
        "for input 'inputs', got [0, 8, 8, 1]": request_for("moments", x, shape=[0, 8, 8, 1], data=[]),
        "FP32 for input 'inputs', got ": request_for("moments", x, datatype="FP64"),
        "inputs ['inputs'], got ['pixels']": request_for("moments", x, name="pixels"),
        "numbers for input 'inputs', got": request_for("moments", x, data=[np.nan, *x.ravel()[1:].tolist()]),
    }
    answers = ask([one for given in wrong.values() for one in (given, request_for("moments", x))])
    for said, answer in zip(wrong, answers[::2], strict=True):
        assert answer["code"] in (400, "INVALID_ARGUMENT"), answer
        assert said in answer["said"]
        assert "\n" not in answer["said"]
    for answer in answers[1::2]:
        assert_right(server, "moments", x, answer)
    assert status(server.ports, "health/ready") == 200


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(["0.5"] * 64, id="strings"),
        pytest.param([True] * 64, id="booleans"),
        pytest.param([1e39] * 64, id="beyond float32"),
        pytest.param([10**40] * 64, id="beyond int64"),
        pytest.param([[1.0, 2.0], [3.0]], id="ragged"),
        pytest.param({"b64": "AAAA"}, id="a table"),
    ],
)
def test_json_that_holds_no_such_numbers_is_refused(server: Server, data: Any, images: np.ndarray) -> None:
    answer = by_http(server, request_for("moments", images[:1], data=data))
    assert answer["code"] in (400, 422), answer
    assert "numbers for input 'inputs'" in answer["said"]


def test_who_asks_for_some_outputs_gets_those(server: Server, images: np.ndarray) -> None:
    given = request_for("moments", images[:1])
    some = by_http(server, {**given, "outputs": [{"name": "epistemic"}]})
    assert list(some["outputs"]) == ["epistemic"]
    answer = by_http(server, {**given, "outputs": [{"name": "logits"}]})
    assert answer["code"] == 400
    assert "got ['logits']" in answer["said"]


def test_who_leaves_early_disturbs_nobody(server: Server, images: np.ndarray) -> None:
    """MLServer itself would leave the others of a batch without an answer."""
    given = request_for("moments", images[:1])
    answers = grpc_answers(server, [{**given, "timeout": WINDOW / 2 if n % 2 else 60} for n in range(2 * CLIENTS)])
    assert {answer["code"] for answer in answers[1::2]} == {"DEADLINE_EXCEEDED"}
    for answer in answers[::2]:
        assert_right(server, "moments", images[:1], answer)


@pytest.mark.parametrize("model", MODELS)
def test_it_says_what_it_takes_and_gives(model: str, server: Server) -> None:
    url = f"http://127.0.0.1:{server.ports['MLSERVER_HTTP_PORT']}/v2/models/{model}"
    with urllib.request.urlopen(url, timeout=120) as response:
        said = json.load(response)
    assert said["inputs"] == [{"name": "inputs", "datatype": "FP32", "shape": [-1, 8, 8, 1]}]
    shapes = {one["name"]: one["shape"] for one in said["outputs"]}
    assert shapes == {"probabilities": [-1, 10], "entropy": [-1], "epistemic": [-1], "aleatoric": [-1]}


@pytest.mark.parametrize("words", [[], ["--grpc"]])
def test_the_client_of_the_example_asks_it(
    words: list[str], server: Server, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images[:4])
    words = [str(PYTHON), str(EXAMPLE / "client.py"), "sampled", str(tmp_path / "images.npy"), *words]
    done = subprocess.run(words, env={**os.environ, **server.ports}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = bp.predict(server.folder / "sampled/export", images[:4])
    assert [int(line.split()[0]) for line in done.stdout.splitlines()[1:]] == expected.labels.tolist()
