"""Executes notebooks in place, so that what they show is what the package does.

    python notebooks/execute.py            # all of them
    python notebooks/execute.py notebooks/1_first_steps.ipynb

Each runs in a kernel of this Python, in a temporary folder. What would change from run to run without a change of the
content (times, execution records, versions) is left out, so that a difference in a notebook is a difference.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from tfp_bprune.files.runs import write_atomically

FOLDER = Path(__file__).resolve().parent
QUICK = "TFP_BPRUNE_QUICK"  # set: few epochs, for tests
_EMPTY = """
%reset -f
import os
os.chdir({folder!r})
get_ipython().execution_count = 0
"""
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """All notebooks, in the order in which to read them."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, quick: bool = False, timeout: int = 300, kernel: Any = None, before: str = "") -> Any:
    """The notebook at `path` with the outputs of a run in a fresh kernel and folder.

    Args:
      path: of the notebook; it stays as it is.
      quick: with few epochs.
      timeout: of a cell, in seconds.
      kernel: from `new_kernel`, for several notebooks one after the other, emptied of names before each: what they import
        is imported once. For tests; else each has its own.
      before: code that `kernel` runs first.

    Raises:
      CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        if kernel is not None:
            notebook.cells.insert(0, nbformat.v4.new_code_cell(_EMPTY.format(folder=folder) + before))
        client = NotebookClient(
            notebook,
            km=kernel,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns that whoever is on this machine could listen
            timeout=timeout,
            startup_timeout=timeout,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment(quick))
    if kernel is not None:
        del notebook.cells[0]
    return stable(notebook)


def new_kernel() -> Any:
    """One for several notebooks, which starts with the first of them; `shutdown_kernel` ends it."""
    return KernelManager(kernel_name="python3")


def environment(quick: bool) -> dict[str, str]:
    """This process's, in which a kernel finds the same package and commands and draws its pictures into the notebook."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MPLBACKEND", QUICK)}
    package = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    commands = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    paths = {"PYTHONPATH": os.pathsep.join(package), "PATH": os.pathsep.join(commands)}
    return kept | paths | ({QUICK: "1"} if quick else {})


def stable(notebook: Any) -> Any:
    """`notebook` without what differs from one execution to the next, or from one machine to another."""
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if "outputs" in cell:  # progress says how long it took
            cell.outputs = [output for output in cell.outputs if "tfp_bprune" not in output.get("metadata", {})]
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = output.text.replace("\r\n", "\n")  # commands after ! run in a terminal
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def main(words: list[str]) -> None:
    """Executes the notebooks named, or all, in place; in quick form nothing is written."""
    quick = QUICK in os.environ
    for path in [Path(word) for word in words] or notebooks():
        started = time.monotonic()
        content = nbformat.writes(executed(path, quick)) + "\n"
        if not quick:
            write_atomically(path, content.encode())
        print(f"{path.name}: {time.monotonic() - started:.0f} s, {len(content) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
