"""The model card beside an export: metadata as Hugging Face reads them, and nothing in it that came from outside is markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import tfp_bprune as bp
from tfp_bprune.cli.main import main
from tfp_bprune.evaluation.fresh import check_export
from tfp_bprune.exports.card import CARD, card_of, word


@pytest.fixture(scope="module")
def export(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its scores."""
    path = tmp_path_factory.mktemp("card") / "export"
    assert main(["export", str(tiny_run), "--predictive", "sampled", "--samples", "2", "--out", str(path), "-q"]) == 0
    return path


def test_the_card_is_one_of_the_files_and_hugging_face_reads_it(export: Path) -> None:
    manifest = check_export(export)
    assert CARD in manifest["files"]
    data = ModelCard.load(export / CARD).data
    assert (data.library_name, data.pipeline_tag) == ("tfp_bprune", "image-classification")
    assert {"bayesian-neural-network", "sampled"} <= set(data.tags or [])
    found = {result.metric_type: result for result in data.eval_results or []}
    assert found["accuracy"].metric_value == pytest.approx(manifest["scores"]["accuracy"], abs=1e-6)
    assert (found["ece"].dataset_name, found["ece"].dataset_split) == ("digits", "valid")


def test_the_text_says_what_the_manifest_says(export: Path) -> None:
    manifest, text = check_export(export), (export / CARD).read_text()
    for part in (
        "`digits`",
        "(2 draws)",
        "| `dense_1` | 1,024 | 1,024 | 0.0 % |",
        f"{manifest['bytes']:,} bytes, {manifest['payload_bytes']:,} of them for weights.",
        "epistemic",
    ):
        assert part in text
    assert f"| accuracy | {manifest['scores']['accuracy']:.4f} |" in text


def test_a_changed_card_is_noticed(export: Path, copied: Any) -> None:
    path = copied(export)
    (path / CARD).write_text("other")
    with pytest.raises(bp.BpruneError, match=r"README\.md"):
        check_export(path)


HOSTILE = "x`|\n---\nlicense: evil\n<script>alert(1)</script>[a](javascript:b)\x1b[31m"


def test_names_from_outside_are_no_markup(export: Path) -> None:
    manifest = check_export(export)
    manifest |= {"network": HOSTILE, "data": manifest["data"] | {"name": HOSTILE}, "export_format": HOSTILE}
    manifest["layers"] = {HOSTILE: next(iter(manifest["layers"].values()))}
    manifest["scores"] = manifest["scores"] | {"split": HOSTILE}
    text = card_of(manifest).decode()
    card = ModelCard(text)
    assert card.data.license is None
    assert text.count("\n---\n") == 1
    assert "\x1b" not in text
    for line in text.split("\n---\n")[1].splitlines():  # within code, which shows it as it is
        outside = "".join(line.split("`")[::2])
        assert "<script>" not in outside
        assert "javascript" not in outside


def test_a_word_is_code() -> None:
    assert word("a`b") == "`ab`"
    assert word("") == "`?`"
    assert word("a\nb|c") == "`a?b/c`"
