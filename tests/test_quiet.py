"""TensorFlow starts quietly, whoever imports it; what is no notice of its start is shown, and a chosen log level holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfp_bprune

NOTICES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
E0000 00:00:1795721993.409775   20303 cuda_dnn.cc:8310] Unable to register cuDNN factory: already registered
I0000 00:00:1795722005.967824   20327 port.cc:153] oneDNN custom operations are on.
"""
ERROR = b"F0000 00:00:1795722005.967824 20327 cpu.cc:37] \xff not AVX: real\n"
PRINTS = f"import os\nos.write(2, {NOTICES.encode() + ERROR!r})\n"


def python(script: str, *path: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a script in a process of its own, with no choice of Keras or of log level yet."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL")}
    places = {"PYTHONPATH": os.pathsep.join(map(str, [*path, Path(tfp_bprune.__file__).parents[1]]))}
    words = [sys.executable, "-c", script]
    return subprocess.run(words, capture_output=True, env=inherited | places | environment, check=False)


def stand_in(folder: Path, body: str) -> Path:
    """A folder with a package named tensorflow."""
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").write_text(body)
    (folder / "tensorflow" / "part.py").write_text("here = 7\n")
    return folder


def test_tensorflow_itself_starts_without_a_word_after_this_package() -> None:
    result = python(
        "import tfp_bprune, tensorflow as tf, tensorflow_probability, tf_keras\n"
        "assert tf.keras.Model is tf_keras.Model\n"
        "print(int(tf.constant(2) + 3))"
    )
    assert (result.stdout, result.stderr) == (b"5\n", b"")


@pytest.mark.parametrize(
    "way", ["import tensorflow", "from tensorflow.part import here", "__import__('tensorflow.part')"]
)
def test_notices_are_dropped_and_all_else_is_shown(tmp_path: Path, way: str) -> None:
    result = python(f"import tfp_bprune\n{way}\nprint('after')", stand_in(tmp_path, PRINTS))
    assert (result.stdout, result.stderr) == (b"after\n", ERROR)


def test_a_log_level_of_the_users_own_holds(tmp_path: Path) -> None:
    everything = NOTICES.encode() + ERROR
    folder = stand_in(tmp_path, PRINTS)
    assert python("import tfp_bprune, tensorflow", folder, TF_CPP_MIN_LOG_LEVEL="0").stderr == everything
    later = "import os, tfp_bprune\nos.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'\nimport tensorflow"
    assert python(later, folder).stderr == everything


def test_the_words_of_a_process_that_dies_are_shown(tmp_path: Path) -> None:
    result = python("import tfp_bprune, tensorflow", stand_in(tmp_path, PRINTS + "os.abort()"))
    assert (result.returncode, result.stderr) == (-6, ERROR)


def test_an_error_of_the_import_is_the_same_as_without_this_package(tmp_path: Path) -> None:
    folder = stand_in(tmp_path, PRINTS + "raise ImportError('no libstdc++')")
    script = (
        "import os, tfp_bprune\ntry:\n  import tensorflow\nexcept ImportError as e:\n  print(e)\n"
        "os.write(2, b'oneDNN custom operations')"
    )
    result = python(script, folder)
    assert (result.stdout, result.stderr) == (b"no libstdc++\n", ERROR + b"oneDNN custom operations")


def test_it_works_without_standard_error_and_without_anything_to_sift_it(tmp_path: Path) -> None:
    folder = stand_in(tmp_path, "import os\n")
    closed = "import os, sys\nos.close(2)\nsys.stderr = None\nimport tfp_bprune, tensorflow\nprint(tensorflow.__name__)"
    assert python(closed, folder).stdout == b"tensorflow\n"
    (folder / "tensorflow" / "__init__.py").write_text(PRINTS)
    assert python("import tfp_bprune, tensorflow", folder, PATH="").stderr == NOTICES.encode() + ERROR


def test_what_is_looked_for_is_found_as_before(tmp_path: Path) -> None:
    script = (
        "import importlib.util, tfp_bprune\n"
        "spec = importlib.util.find_spec('tensorflow')\n"
        "import tensorflow\n"
        "print(type(spec.loader).__name__, spec.origin == tensorflow.__file__, importlib.util.find_spec('no_such_thing'))"
    )
    result = python(script, stand_in(tmp_path, PRINTS))
    assert result.stdout == b"SourceFileLoader True None\n"
    missing = "import sys\nimport tfp_bprune\nsys.path[:] = []\ntry:\n  import tensorflow\nexcept ModuleNotFoundError as e:\n  print(e)"
    assert python(missing).stdout == b"No module named 'tensorflow'\n"
