"""The page of the example in headless Chromium: both runtimes answer as TensorFlow does, and nothing comes from elsewhere."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import tfp_bprune as bp

EXAMPLE = Path(__file__).parents[2] / "examples/browser"
MODULES = Path(os.environ.get("BPRUNE_NODE_MODULES", EXAMPLE / "node_modules"))
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
RUNTIMES = ("onnx", "litert")
PACKAGES = json.loads((EXAMPLE / "package.json").read_text())
PINNED = {**PACKAGES["dependencies"], **PACKAGES["devDependencies"]}
DIGITS = 12

needs_browser = [
    pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed"),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="Chromium is not installed: CHROMIUM names it"),
    pytest.mark.skipif(
        not all((MODULES / name).exists() for name in PINNED),
        reason="the page's packages are not installed: `npm install` in examples/browser, or BPRUNE_NODE_MODULES names them",
    ),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """`python -m http.server`, without its log."""

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


def export_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser_export", EXAMPLE / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page with the exports of a small network, served from a copy of the example."""
    for package in ("ai_edge_litert", "onnx", "tf2onnx"):
        pytest.importorskip(package)
    ignored = shutil.ignore_patterns("node_modules", "models")
    folder = Path(shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("examples") / "browser", ignore=ignored))
    (folder / "node_modules").symlink_to(MODULES.resolve())
    export_script().write(tiny_model, folder / "models")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def pixels(images: np.ndarray) -> np.ndarray:
    """Digits, an empty board, and what no digit looks like."""
    strange = np.random.default_rng(0).uniform(0, 16, size=(2, 8, 8, 1))
    return np.concatenate([images[:DIGITS], np.zeros((1, 8, 8, 1)), strange]).astype(np.float32)


@pytest.fixture(scope="module")
def seen(address: str, pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page answered in Chromium."""
    file = tmp_path_factory.mktemp("digits") / "digits.json"
    file.write_text(json.dumps(pixels.reshape(len(pixels), -1).tolist()))
    folder = MODULES.resolve().parent  # Node looks for packages beside the script
    script = EXAMPLE / "drive.mjs"
    if folder != EXAMPLE:
        script = (
            Path(shutil.copytree(EXAMPLE, file.parent / "driver", ignore=shutil.ignore_patterns("*modules")))
            / "drive.mjs"
        )
        (script.parent / "node_modules").symlink_to(MODULES.resolve())
    words = ["node", str(script), address, str(file), str(file.parent / "page.png")]
    done = subprocess.run(words, env={**os.environ, "CHROMIUM": CHROMIUM}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert (file.parent / "page.png").stat().st_size > 1000
    return json.loads(done.stdout)


class TestInChromium:
    """In one visit of the page."""

    pytestmark = needs_browser

    @pytest.mark.parametrize("runtime", RUNTIMES)
    def test_answers_are_tensorflows(
        self, runtime: str, seen: dict[str, Any], pixels: np.ndarray, tiny_model: Any
    ) -> None:
        expected = bp.predict(tiny_model, pixels, predictive="moments").outputs
        assert set(expected) == {"probabilities", "entropy", "epistemic", "aleatoric"}
        for name, value in expected.items():
            found = np.array([answer[name] for answer in seen["answers"][runtime]]).reshape(value.shape)
            np.testing.assert_allclose(found, value, atol=1e-5, err_msg=name)

    def test_a_drawn_digit_is_answered_alike_by_both(self, seen: dict[str, Any]) -> None:
        assert seen["errors"] == []
        for runtime in RUNTIMES:
            shown = seen["shown"][runtime]
            assert re.fullmatch(r"answered in [\d.]+ ms; nothing left this machine", shown["status"]), shown
            entropy, epistemic, aleatoric = (float(shown[name]) for name in ("entropy", "epistemic", "aleatoric"))
            assert 0 <= entropy <= math.log(10)
            assert abs(entropy - epistemic - aleatoric) <= 2e-3  # shown with three decimals
        here, there = ({k: v for k, v in seen["shown"][r].items() if k in ("label", "confidence")} for r in RUNTIMES)
        assert here == there

    def test_every_file_comes_from_the_page_itself(self, seen: dict[str, Any], address: str) -> None:
        hosts = {urlsplit(one).netloc for one in seen["addresses"] if not one.startswith(("data:", "blob:"))}
        assert hosts == {urlsplit(address).netloc}
        assert any(one.endswith("model.onnx") for one in seen["addresses"])
        assert any(one.endswith("model.tflite") for one in seen["addresses"])


def test_versions_are_pinned_and_no_file_names_another_host() -> None:
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in PINNED.values())
    for name in ("index.html", "page.js", "page.css", "runtimes.js", "drive.mjs", "package.json"):
        assert "//" not in re.sub(r"^\s*//.*$|; // .*$", "", (EXAMPLE / name).read_text(), flags=re.M), name


@pytest.mark.skipif(not MODULES.exists(), reason="the page's packages are not installed")
def test_what_is_installed_is_what_is_pinned() -> None:
    found = {name: json.loads((MODULES / name / "package.json").read_text())["version"] for name in PINNED}
    assert found == PINNED
