"""What the command line says of itself: every option, its default, the command to ask for help, the word that was meant."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Refused
from tfp_bprune._progress import Bar, quietly
from tfp_bprune.cli.main import COMMANDS, main, parser_of_all


def commands() -> dict[str, argparse.ArgumentParser]:
    [found] = [action for action in parser_of_all()._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


def options() -> Iterator[tuple[str, argparse.ArgumentParser, argparse.Action]]:
    for name, parser in commands().items():
        for action in parser._actions:
            yield f"{name} {(action.option_strings or [action.dest])[-1]}", parser, action


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does_and_its_default(command: str) -> None:
    for name, parser, action in options():
        if name.split()[0] != command:
            continue
        assert action.help, name
        shown = parser._get_formatter()._expand_help(action)  # type: ignore[attr-defined]
        assert not shown.endswith((".", " ")), name
        if action.option_strings and action.nargs != 0 and not action.required:
            [default] = re.findall(r"\(default: (.+)\)", shown)
            values = action.default if isinstance(action.default, list) else [action.default]
            if action.default not in (None, []):
                assert default == " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian --out x", "tfp-bprune: argument COMMAND: invalid choice: 'trian'; did you mean 'train'? (choose from"),
        ("train --layers flipuot --out x", "invalid choice: 'flipuot'; did you mean 'flipout'?"),
        ("train --epoch 3 --out x", "unrecognized arguments: --epoch 3; did you mean '--epochs'?"),
        ("sweep runs/x --sparsty=0.5", "unrecognized arguments: --sparsty=0.5; did you mean '--sparsity'?"),
        ("train --model lenet55 --out x", "unknown network 'lenet55'; did you mean 'lenet5'?"),
        ("prune runs/x --criterion evidense --out x", "did you mean 'evidence'?"),
    ],
)
def test_a_word_that_is_nearly_right_is_answered_with_the_right_one(refused: Refused, words: str, said: str) -> None:
    assert said in refused(*words.split())


def test_a_word_that_is_like_none_is_answered_with_all(refused: Refused) -> None:
    line = refused("fly")
    assert "did you mean" not in line
    assert "(choose from demo, train," in line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_names_the_help_of_its_own_command(refused: Refused, command: str) -> None:
    needed = [str(a.choices[0] if a.choices else "1") for a in commands()[command]._actions if not a.option_strings]  # type: ignore[index]
    more = [
        w for a in commands()[command]._actions if a.required and a.option_strings for w in (a.option_strings[0], "x")
    ]
    line = refused(command, *needed, *more, "--no-such-option", "1")
    assert line.startswith(f"tfp-bprune {command}: unrecognized arguments: --no-such-option 1")
    assert line.endswith(f"see `tfp-bprune {command} --help`\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "train --validation-fraction 10 --out {out}",
            "validation_fraction must be in [0, 1), got 10.0: use 0.1 for 10 %",
        ),
        ("train --sparsity 97.5 --out {out}", "sparsity must be in [0, 1), got 97.5: use 0.975 for 97.5 %"),
        ("prune {run} --sparsity 90 --out {out}", "sparsity must be in [0, 1), got 90.0: use 0.9 for 90 %"),
        ("sweep {run} --sparsity 0.5 90", "sparsity must be in [0, 1), got 90.0: use 0.9 for 90 %"),
        ("search {run} --level 95", "level must be in [0.5, 1), got 95.0: use 0.95 for 95 %"),
        ("train --sparsity 100 --out {out}", "sparsity must be in [0, 1), got 100.0\n"),
        ("train --sparsity -90 --out {out}", "sparsity must be in [0, 1), got -90.0\n"),
    ],
)
def test_a_percentage_is_answered_with_the_fraction(
    refused: Refused,
    tiny_run: Path,
    tmp_path: Path,
    words: str,
    said: str,
) -> None:
    line = refused(*words.format(run=tiny_run, out=tmp_path / "out").split())
    assert said in line


def test_quiet_prints_nothing(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, words in enumerate((["-q", "prune"], ["prune", "--quiet"])):
        place = words.index("prune") + 1
        line = [
            *words[:place],
            str(tiny_run),
            "--sparsity",
            "0.5",
            "--out",
            str(tmp_path / str(number)),
            *words[place:],
        ]
        assert main(line) == 0
        assert capsys.readouterr() == ("", "")
    assert main(["inspect", str(tiny_run), "--quiet", "--json", "-"]) == 0
    assert capsys.readouterr().out.startswith("{")
    assert main(["inspect", str(tmp_path / "none"), "--quiet"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["inspect", str(tiny_run)]) == 0
    assert capsys.readouterr().out != ""


def test_quiet_work_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with quietly(), Bar("work", 2) as bar:
        bar.to(2)
    assert capsys.readouterr() == ("", "")


def test_inspect_says_what_a_run_is(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_run)]) == 0
    said = capsys.readouterr().out
    for part in (
        "network: mlp (flipout)",
        "data: digits, classification, 1,294 training",
        "epochs: 2; last one: val_acc",
    ):
        assert part in said


@pytest.mark.parametrize(("shell", "part"), [("bash", "complete -o "), ("zsh", "#compdef tfp-bprune")])
def test_completion_knows_commands_options_and_values(
    shell: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "--shell", shell]) == 0
    script = capsys.readouterr().out
    for known in (part, *COMMANDS, "--sparsity", "--learning-rate", "reparameterization"):
        assert known in script


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    typed = "COMP_WORDS=(tfp-bprune train --lay); COMP_CWORD=2; _shtab_tfp_bprune; echo ${COMPREPLY[@]}"
    words = ["bash", "-c", f"source {tmp_path / 'script'}; {typed}"]
    assert "--layers" in subprocess.run(words, capture_output=True, text=True, check=False).stdout


def test_the_module_is_the_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tfp_bprune", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("tfp-bprune ")


def test_help_fits_sixty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for parser in commands().values():
        before_examples = re.split("studies:|example", parser.format_help())[0]
        foldable = [line for line in before_examples.splitlines() if "{" not in line]  # choices are one word
        assert max(map(len, foldable)) <= 60
    assert os.environ["COLUMNS"] == "60"
