"""`make mutate`: puts known bugs in, one at a time, and says which of them the tests that should see them let live.

Works on a copy of the package in a temporary folder: the sources stay as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """A bug: in a file of the package the words `right` become `wrong`; `tests` should see it."""

    file: str
    right: str
    wrong: str
    tests: str


SURVIVORS = "tests/test_survivors.py"
MUTANTS = (
    Mutant("layers/variational.py", "kl + terms_of_bias.kl", "kl + 2 * terms_of_bias.kl", SURVIVORS),
    Mutant("prediction/metrics.py", "astype(int), bins - 1)", "astype(int), bins - 2)", SURVIVORS),
    Mutant("layers/estimators.py", "flipped = inputs * self", "flipped = inputs + 0 * self", SURVIVORS),
    Mutant("pruning/groups.py", "np.divide(side.ratio, side.left,", "np.divide(side.ratio, side.weights,", SURVIVORS),
    Mutant("pruning/callback.py", "self._begun + batch + 1", "self._begun + batch", SURVIVORS),
    Mutant("files/reading.py", '("", ".", "..")', '("", ".")', "tests/hostile/test_files.py"),
    Mutant("files/reading.py", "flags | os.O_NOFOLLOW", "flags", "tests/hostile/test_files.py"),
    Mutant("files/reading.py", "| os.O_NONBLOCK", "", "tests/hostile/test_files.py"),
    Mutant("files/reading.py", "object_pairs_hook=_object", "object_pairs_hook=dict", "tests/hostile/test_files.py"),
    Mutant("files/reading.py", "parse_float=_number", "parse_float=float", "tests/hostile/test_files.py"),
    Mutant("files/runs.py", "            unsealed(content, path)\n", "            pass\n", "tests/hostile/test_flips.py"),
    Mutant("storage/store.py", "    check_known(config)\n", "", "tests/hostile/test_architectures.py"),
    Mutant("exports/operations.py", "ALLOWED if name in reached else ALLOWED | _SAVING", "ALLOWED | _SAVING", "tests/hostile/test_savedmodels.py"),
)  # fmt: skip


def lives(mutant: Mutant, place: Path) -> bool:
    """Whether the tests pass although the bug is in."""
    file = place / "tfp_bprune" / mutant.file
    source = file.read_text()
    if source.count(mutant.right) != 1:
        sys.exit(
            f"{mutant.file} has {mutant.right!r} {source.count(mutant.right)} times: expected once, bring the mutant up to date"
        )
    file.write_text(source.replace(mutant.right, mutant.wrong))
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "--timeout", "300", mutant.tests]
    try:
        ended = subprocess.run(
            words, cwd=place, capture_output=True, env=os.environ | {"PYTHONPATH": str(place)}, check=False
        )
    finally:
        file.write_text(source)
    return ended.returncode == 0


def main() -> int:
    """Tries all mutants, or those whose file has a word of the command line in its name."""
    chosen = [m for m in MUTANTS if len(sys.argv) < 2 or any(word in m.file for word in sys.argv[1:])]
    alive = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tfp_bprune", "tests", "pyproject.toml"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder) / name)
        for mutant in chosen:
            lived = lives(mutant, Path(folder))
            print(
                f"{'LIVES' if lived else 'seen '}  {mutant.file}: {mutant.right.strip()} -> {mutant.wrong.strip()}",
                flush=True,
            )
            alive += [mutant] if lived else []
    print(f"{len(alive)} of {len(chosen)} mutants live")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
