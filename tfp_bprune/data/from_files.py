"""Examples out of files of users: .npy, .npz, .csv, a .png or a folder of them; numbers alone, and nothing is guessed."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.data.arrays import Arrays
from tfp_bprune.data.info import Info, read_arrays
from tfp_bprune.data.splits import Split, Splits, from_arrays
from tfp_bprune.files.reading import MOST_BYTES, free_memory, read_below
from tfp_bprune.types import BpruneError, DataError, Json

TARGETS = ("y", "target", "label", "class")  # a column of a table with one of these names is no feature
_LARGE, _DENSEST = 2**27, 100  # bytes that any archive may unpack to, and beyond that how many times its size
_UNREADABLE = (
    ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_KINDS = "a .npy, .npz or .csv file, a .png, or a folder of .png"
_FEWEST = "x and y, or x_train, y_train, x_test and y_test"


def read_splits(path: Path, known: Json) -> Splits:
    """Data for a network that was trained on arrays.

    Args:
      path: .npz with `x` and `y`, or a .csv with a column of targets: examples to score on, which become the split "test", and
        there is no other; or .npz with `x_train`, `y_train`, `x_test` and `y_test`: all that it was trained on.
      known: what a run's or export's `data` says.

    Raises:
      DataError: the file does not hold that, or other examples than the run was trained on.
    """
    info = Info.from_json(known)
    if info.inputs is not None or info.outputs is not None:
        raise DataError(
            f"{info.name} has several inputs or outputs, {path} can hold one of each: use Python, `bp.reload`"
        )
    arrays = _table(path, info) if path.suffix == ".csv" else _read_npz(path)
    if {"x", "y"} <= set(arrays):
        x, y = read_arrays(_shaped(arrays["x"], info.input_shape, path), arrays["y"], replace(info, name=str(path)))
        return Splits({"test": Split("test", x, y)}, info, known.get("batch_size", 100), known.get("seed", 0))
    if not {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        raise DataError(f"{path} holds {_listed(arrays)}: expected the arrays {_FEWEST}")
    return _all_splits(path, arrays, info, known)


def _all_splits(path: Path, arrays: dict[str, np.ndarray], info: Info, known: Json) -> Splits:
    n, kept = len(arrays["x_train"]), known.get("train_size", 0)
    if not 0 < kept <= n:
        raise DataError(
            f"{path} holds {n} training examples: expected those that the run was trained on, {kept} or more"
        )
    train, test = ((arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    how: Json = {
        "batch_size": known.get("batch_size", 100),
        "seed": known.get("seed", 0),
        "validation_fraction": (n - kept) / n,
    }
    splits = from_arrays(train, test, info=info, **how)
    if splits.info.fingerprint != known["fingerprint"]:
        raise DataError(f"{path} does not hold what the run was trained on (fingerprints differ): give the same arrays")
    return splits


def read_examples(path: Path, inputs: Json) -> tuple[Arrays, list[str]]:
    """Examples without targets, and a name for each: its number, or its file.

    Args:
      path: .npy [n, ...]; .npz with an array for each input, or `x` where there is one; .csv, a row an example; a .png or a folder
        of them, in the order of their names.
      inputs: `shape` of one example and `dtype`, by name, as in an export's manifest.

    Raises:
      DataError: there is no such file, or it does not hold such examples.
    """
    shapes = {name: tuple(about["shape"]) for name, about in inputs.items()}
    if path.suffix == ".npz":
        found = _read_npz(path)
        given = {name: found.get(name, found.get("x") if len(shapes) == 1 else None) for name in shapes}
        missing = [name for name, one in given.items() if one is None]
        if missing:
            raise DataError(f"{path} holds {_listed(found)}: expected an array {missing[0]!r}")
        x: Arrays = {name: _shaped(one, shapes[name], path) for name, one in given.items() if one is not None}
        x = x if len(x) > 1 else next(iter(x.values()))
        return x, [str(i) for i in range(len(found[next(iter(found))]))]
    if len(shapes) > 1:
        raise DataError(
            f"the export has the inputs {', '.join(map(repr, shapes))}: expected a .npz with an array for each"
        )
    [shape] = shapes.values()
    if path.is_dir() or path.suffix == ".png":
        return _images(path, shape)
    if path.suffix not in (".npy", ".csv"):
        raise DataError(f"{path} is of an unknown file type: expected {_KINDS}")
    rows = _features(path, shape) if path.suffix == ".csv" else _load(path, _content(path))
    x = _shaped(rows, shape, path)
    return x, [str(i) for i in range(len(x))]


def _shaped(x: np.ndarray, shape: Sequence[int | None], path: Path) -> np.ndarray:
    """Examples [n, ...] of `shape`; rows with as many numbers as it has are put into it."""
    fits = x.ndim == len(shape) + 1 and all(one in (None, size) for one, size in zip(shape, x.shape[1:], strict=True))
    if fits and len(x):
        return x
    whole = None not in shape and x.ndim > 1 and len(x) > 0
    if whole and math.prod(x.shape[1:]) == math.prod(size or 1 for size in shape) and x.ndim != len(shape) + 1:
        return x.reshape(len(x), *shape)
    raise DataError(
        f"{path} has examples of shape {tuple(x.shape)}: expected (n, {', '.join(map(str, shape))}), n at least 1"
    )


def _content(path: Path) -> bytes:
    """The bytes of a file that the user named; where that is a link, of what it leads to."""
    place = Path(os.path.realpath(path))  # which says nothing of links in a circle; to open it does
    try:
        return read_below(place.parent, place.name)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): expected {_KINDS}") from error


def _load(path: Path, content: bytes) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as an array ({_first(error)}): write it with np.save") from error
    return _numbers(found, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if path.suffix != ".npz":
        raise DataError(f"{path} is of an unknown file type: expected a .npz with the arrays {_FEWEST}, or a .csv")
    try:
        content = _content(path)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_sizes(path, archive.infolist(), len(content))
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _load(path, archive.read(name)) for name in names}
    except BpruneError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as arrays ({_first(error)}): write it with np.savez") from error


def _check_sizes(path: Path, entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Refuses an archive that does not fit into memory, or that is next to nothing on disk: examples are not all the same."""
    whole = sum(entry.file_size for entry in entries)
    if whole > (most := min(MOST_BYTES, free_memory())):
        raise DataError(f"{path} unpacks to more than {most:.3g} bytes: expected a smaller file")
    if whole > max(_LARGE, _DENSEST * size):
        raise DataError(f"{path} unpacks to {whole / size:.0f} times its size: write it with np.savez, uncompressed")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise DataError(f"{path} is compressed in a way that NumPy does not write: write it with np.savez")


def _numbers(found: Any, path: Path) -> np.ndarray:
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iufbU" or found.ndim == 0:
        raise DataError(f"{path} does not hold an array of numbers: expected one example per row")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise DataError(f"{path} holds numbers that are NaN or infinite: drop or replace them")
    return found


def _table(path: Path, info: Info) -> dict[str, np.ndarray]:
    """`x` and `y` of a table: the column with a name of `TARGETS`, or the last, is the target."""
    header, numbers = _read_csv(path)
    features = math.prod(info.input_shape)
    if numbers.shape[1] != features + 1:
        raise DataError(f"{path} has {numbers.shape[1]} columns: expected {features} features and a target")
    column = next((i for i, name in enumerate(header) if name.lower() in TARGETS), features)
    y = numbers[:, column]
    whole = info.task != "regression" and np.array_equal(y, np.round(y))
    return {"x": np.delete(numbers, column, 1).astype(np.float32), "y": y.astype(np.int64 if whole else np.float32)}


def _features(path: Path, shape: Sequence[int | None]) -> np.ndarray:
    """The features of a table; a column with a name of `TARGETS` is left out."""
    header, numbers = _read_csv(path)
    columns = [i for i, name in enumerate(header) if name.lower() in TARGETS]
    if columns and None not in shape and numbers.shape[1] == math.prod(size or 1 for size in shape) + 1:
        numbers = np.delete(numbers, columns[0], 1)
    return numbers.astype(np.float32)


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """The names of the columns, if the first row holds nothing but words, and the numbers [rows, columns].

    Row after row becomes numbers: the cells of a whole table as Python's strings would take thirty times its size.
    """
    text = io.TextIOWrapper(io.BytesIO(_content(path)), "utf-8-sig", newline="")
    header, numbers, columns, count = [], array("d"), 0, 0
    try:
        for row in filter(None, csv.reader(text)):
            count += 1
            if count == 1 and not any(map(_parses, row)):
                header = [cell.strip() for cell in row]
                continue
            columns = columns or len(row)
            numbers.extend(_row(row, columns, f"{path}, row {count}"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({_first(error)}): expected UTF-8 with commas") from error
    if not columns:
        raise DataError(f"{path} has no rows of numbers: expected one for each example")
    return header, np.frombuffer(numbers).reshape(-1, columns)


def _row(cells: list[str], columns: int, where: str) -> list[float]:
    wrong = next((cell for cell in cells if not _is_number(cell)), None)
    if wrong is not None or len(cells) != columns:
        said = f"{len(cells)} cells" if wrong is None else f"{wrong[:40]!r}"
        raise DataError(f"{where}, has {said}: expected {columns} finite numbers")
    return [float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    return _parses(cell) and math.isfinite(float(cell))


def _parses(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _images(path: Path, shape: Sequence[int | None]) -> tuple[np.ndarray, list[str]]:
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise DataError(
            f"the export takes examples of shape {tuple(shape)}, no images: expected a .npy, .npz or .csv file"
        )
    files = sorted(one for one in path.iterdir() if one.suffix.lower() == ".png") if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no .png: expected {_KINDS}")
    folder = path.resolve() if path.is_dir() else None
    return np.stack([_image(one, folder, shape) for one in files]), [one.name for one in files]


def _image(path: Path, folder: Path | None, shape: Sequence[int | None]) -> np.ndarray:
    """The pixels of a PNG, from 0 to 255; its size is looked at before anything is unpacked."""
    from PIL import Image

    try:
        content = _content(path) if folder is None else read_below(folder, path.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # whose size is refused below
            image = Image.open(io.BytesIO(content), formats=("PNG",))
        kind, wanted = image.mode, "RGB" if shape[-1] == 3 else "L"
        height, width = shape[:2]
        if height not in (None, image.height) or width not in (None, image.width) or kind not in _KNOWN[wanted]:
            raise DataError(
                f"{path} is {image.height} x {image.width}, {kind}: expected {height} x {width}, {wanted} "
                f"({'colours' if wanted == 'RGB' else 'grey'}, 8 bits)"
            )
        return np.asarray(image.convert(wanted)).reshape(image.height, image.width, -1)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({_first(error)}): expected a PNG") from error


def _listed(names: Iterable[str]) -> str:
    """The first of the names, each cut."""
    every = [name[:40] for name in names]
    return ", ".join(every[:5]) + (" and others" if len(every) > 5 else "") or "nothing"


_KNOWN = {"RGB": ("RGB", "P"), "L": ("L", "1")}


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
