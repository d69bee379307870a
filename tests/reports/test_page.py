"""The report: one page that stands alone, with the numbers of what it reports on, and nothing from outside that is markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune.cli.main import main
from tfp_bprune.evaluation.summary import summary_of
from tfp_bprune.files.runs import Run
from tfp_bprune.reports.page import escaped, table
from tfp_bprune.reports.report import report_page

VOID = {"meta", "br", "use", "path", "rect", "image", "line", "circle"}


class Page(HTMLParser):
    """Reads a page: its tags, whether they are closed in order, and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.addresses += [value] if name in ("href", "src", "xlink:href", "action", "data") else []
            self.handlers += [name] if name.startswith("on") else []
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def assert_stands_alone(text: str) -> Page:
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses), page.addresses
    assert page.handlers == []
    assert "default-src 'none'" in text
    assert not re.findall(r"url\((?!#)", text)
    assert "@import" not in text
    return page


@pytest.fixture(scope="module")
def reported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The page of a run and two exports of it, pruned, and the same as JSON."""
    place = tmp_path_factory.mktemp("report")
    assert main(["prune", str(tiny_run), "--sparsity", "0.5", "--out", str(place / "half"), "-q"]) == 0
    exports = []
    for predictive in ("mean", "moments"):
        exports.append(str(place / predictive))
        assert main(["export", str(place / "half"), "--predictive", predictive, "--out", exports[-1], "-q"]) == 0
    words = ["report", str(tiny_run), *exports, "--out", str(place / "page.html"), "--json", str(place / "page.json")]
    assert main([*words, "-q"]) == 0
    return place / "page.html", json.loads((place / "page.json").read_text())


def test_the_page_stands_alone_and_says_what_the_json_says(reported: Any, tiny_run: Path) -> None:
    path, found = reported
    page = assert_stands_alone(path.read_text())
    titles = ("What it is", "Data", "Training", "Scores", "Calibration", "Risk and coverage", "What was pruned where",
              "What each form costs", "Uncertainty before and after", "Versions and hashes")  # fmt: skip
    assert [word for word in page.words if word in titles] == list(titles)
    words = " ".join(page.words)
    for name in ("mean", "moments"):
        [network] = [one for one in found["networks"] if one["name"] == name]
        assert f"{network['summary']['accuracy']:.4f} [" in words
    for entry in Run.open(tiny_run).manifest["files"].values():
        assert entry["sha256"] in words
    assert words.count("scipy") == 0
    assert "50.0 % of 1,184 weights removed" in words
    assert len(re.findall("<svg", path.read_text())) >= 9


def test_identifiers_are_unique(reported: Any) -> None:
    found = re.findall(r'\bid="([^"]+)"', reported[0].read_text())
    assert len(found) == len(set(found))


def test_scores_are_those_of_evaluate(reported: Any) -> None:
    _, found = reported
    data = bp.load("digits")
    for network in found["networks"][1:]:
        path = reported[0].parent / network["name"]
        expected = bp.evaluate(path, data.examples("test"), progress=False)
        assert network["summary"]["nll"] == pytest.approx(expected["nll"], rel=1e-5)
        _, accuracy, counts = np.array(network["summary"]["calibration"]).T
        assert len(data.examples("test")) - 5 * 4 <= counts.sum() <= len(data.examples("test"))
        assert (counts >= 5).all()
        assert (accuracy * counts).sum() / len(data.examples("test")) == pytest.approx(expected["accuracy"], abs=0.05)
        assert network["summary"]["risk"][-1] == pytest.approx([1.0, 1 - expected["accuracy"]])


def test_a_regression_has_levels_and_deviations(regression_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["report", str(regression_run), "--out", str(out), "--json", str(tmp_path / "page.json"), "-q"]
    assert main(words) == 0
    assert_stands_alone(out.read_text())
    [network] = json.loads((tmp_path / "page.json").read_text())["networks"]
    assert [level for level, *_ in network["summary"]["calibration"]] == [round(0.1 * i, 1) for i in range(1, 10)]
    assert {"noise_std", "weights_std"} == set(network["summary"]["uncertainty"])


def test_without_the_data_nothing_is_scored_and_the_page_says_so(
    mlp: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bp.save_model(mlp(), tmp_path / "bare")
    assert main(["report", str(tmp_path / "bare")]) == 0
    assert "nothing is scored" in capsys.readouterr().err
    assert "Nothing was scored" in (tmp_path / "bare-report.html").read_text()


HOSTILE = "</title><script>alert(1)</script>\"' onload=x $\\frac$ \x1b[31m {0} <svg>"


def test_what_comes_from_files_is_escaped(reported: Any) -> None:
    _, found = reported

    def poisoned(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                (HOSTILE if key in ("dense_1", "moments", "epochs") else key): poisoned(one)
                for key, one in node.items()
            }
        if isinstance(node, list):
            return [poisoned(one) for one in node]
        return HOSTILE if isinstance(node, str) and node not in ("classification",) else node

    report = {key: value for key, value in found.items() if key != "page"}
    bad = poisoned(report)
    bad["networks"] = [one | {"name": f"{HOSTILE}{i}"} for i, one in enumerate(bad["networks"])]
    text = report_page(bad)
    page = assert_stands_alone(text)
    assert "alert(1)" in " ".join(page.words)
    assert "\x1b" not in text


def test_cells_are_text() -> None:
    assert escaped("<b>&\x00") == "&lt;b&gt;&amp;\\x00"
    assert "<b>" not in table(["<b>"], [["<b>"]])


def test_a_perfect_prediction_is_summed_up(tiny_model: Any, digits: Any) -> None:
    few = digits.examples("test").rows(slice(0, 3))
    said = bp.predict(tiny_model, few.x, predictive="mean")
    right = type(few)("test", few.x, said.labels)
    summary = summary_of(bp.evaluate(tiny_model, right, predictive="mean"))
    assert summary["uncertainty"]["entropy"]["wrong"] == []
    assert summary["risk"][-1] == [1.0, 0.0]
