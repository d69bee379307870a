"""`tfp-bprune completion`: a script by which a shell completes commands, options and their values."""

from __future__ import annotations

from typing import Any

from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import Parser
from tfp_bprune.cli.stopped import PROGRAM
from tfp_bprune.types import Shell

HELP = "print a script for shell completion"
EXAMPLE = """example:
  tfp-bprune completion --shell bash > ~/.local/share/bash-completion/completions/tfp-bprune
  tfp-bprune completion --shell zsh > ~/.zfunc/_tfp-bprune      # a folder of your $fpath
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    add_choice(parser, "--shell", Shell, "bash", "shell that is to read the script")


def run(arguments: Any) -> int:
    """Runs the command."""
    import shtab

    from tfp_bprune.cli.main import parser_of_all

    print(shtab.complete(parser_of_all(), arguments.shell, PROGRAM))
    return 0
