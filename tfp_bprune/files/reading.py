"""The one way in for what lies on disk: regular files below a folder, no longer than stated, JSON of a known shape.

Whoever wrote a file may have meant harm. No link below the folder is followed, nothing is opened that could block or grow
without end, nothing is parsed that is longer, deeper or wider than what this package writes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tfp_bprune.types import RunError

MOST_JSON = 2**25  # bytes of a JSON file; a stored architecture of a thousand layers takes a hundredth
MOST_BYTES = 2**36  # of any file
_LARGE = 2**28  # from here on it is asked whether there is so much memory
_DEEPEST, _DIGITS, _LONGEST_NAME, _LONGEST_WORDS = 200, 20, 1000, 200
_LINK = "it is or lies behind a symbolic link, which is not followed"


def printable(text: str) -> str:
    """`text` with what a terminal would act on, such as ESC, as Python writes it within quotes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def parts_of(name: Any, where: object) -> list[str]:
    """The parts of a name within a folder.

    Raises:
      RunError: it is absolute, leads out of the folder, or is no name of a file.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    strange = any(part in ("", ".", "..") for part in parts) or not str(name).isprintable()
    if strange or len(str(name)) > _LONGEST_NAME:
        raise RunError(f"{where} names the file {str(name)[:80]!r}: expected a relative path inside its folder")
    return parts


@contextlib.contextmanager
def folder_below(folder: Path, parts: list[str], make: bool = False) -> Iterator[int]:
    """A descriptor of the folder `folder/parts...`, reached without following a link below `folder`.

    Raises:
      OSError: it is not there, or something on the way is a link or a file.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
            there = _open(part, os.O_RDONLY | os.O_DIRECTORY, here)
            os.close(here)
            here = there
        yield here
    finally:
        os.close(here)


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _is_link(name, folder)):
            raise OSError(error.errno, _LINK) from error
        raise


def _is_link(name: str, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def open_below(folder: Path, name: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `name` below `folder`, reached without following a link below it.

    Raises:
      OSError: it is missing, no regular file, or behind a link.
      RunError: `name` leads out of the folder.
    """
    *parents, last = parts_of(name, folder)
    with folder_below(folder, parents, make=bool(flags & os.O_CREAT)) as place:
        file = _open(last, flags, place)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def read_below(folder: Path, name: str, most: int = MOST_BYTES, first: int | None = None) -> bytes:
    """The content of a file below `folder`, or its `first` bytes.

    Raises:
      OSError: as in `open_below`; or there are more than `most` bytes to be read.
      RunError: `name` leads out of the folder.
    """
    with open(open_below(folder, name), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        wanted = size if first is None else min(first, size)
        if wanted > most:
            raise OSError(errno.EFBIG, f"it has {wanted} bytes, expected {most} at most")
        if wanted > _LARGE and wanted > free_memory():
            raise OSError(errno.ENOMEM, f"its {wanted} bytes do not fit into memory")
        try:
            return file.read(wanted)
        except MemoryError as error:
            raise OSError(errno.ENOMEM, f"its {wanted} bytes do not fit into memory") from error


def free_memory() -> float:
    """Bytes of memory that the kernel would give; a file of holes takes no disk, but as much memory as it says it has."""
    try:
        with open("/proc/meminfo") as file:
            [free] = [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return math.inf
    return free


def check_memory(size: int, what: str) -> None:
    """Refuses what would not fit into memory.

    Args:
      size: bytes that it would take.

    Raises:
      RunError: it is more than the kernel would give.
    """
    if size > _LARGE and size > free_memory():
        raise RunError(f"{what} take {size} bytes, which do not fit into memory: use a machine with more of it")


def check_inside(folder: Path, name: str) -> Path:
    """`folder/name`, if no link lies on the way there below `folder`.

    Raises:
      RunError: one does.
    """
    path = folder
    for part in parts_of(name, folder):
        path = path / part
        if path.is_symlink():
            raise RunError(f"{path} is a symbolic link, which is not followed: remove it, or choose another folder")
    return path


def check_no_links(folder: Path) -> None:
    """Refuses a folder that another library is to write into, if a link lies anywhere below it.

    Raises:
      RunError: naming the link.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            check_inside(Path(place), name)


def read_json(path: Path, schema: Mapping[str, Any] | None = None, most: int = MOST_JSON) -> Any:
    """Reads a JSON file.

    Raises:
      RunError: the file is missing, is not JSON, or not what `schema` (JSON Schema) says.
    """
    try:
        content = read_below(path.parent, path.name, most)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: expected a run or export directory written by tfp-bprune") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); restore it from a copy") from error
    return parse(content, path, schema)


def parse(content: bytes, where: object, schema: Mapping[str, Any] | None = None) -> Any:
    """What JSON says, with no name twice, no number that is not finite, and of bounded size and depth.

    Args:
      where: what error messages call the content.
      schema: JSON Schema that the value must fit.

    Raises:
      RunError: it is something else.
    """
    try:
        if len(content) > MOST_JSON:
            raise ValueError(f"{len(content)} bytes, expected {MOST_JSON} at most")
        value = json.loads(
            content.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RunError(
            f"{where} cannot be read as JSON ({_short(said)}); restore it from a copy or make the run anew"
        ) from error
    if schema is not None:
        check(value, where, schema)
    return value


def check(value: Any, where: object, schema: Mapping[str, Any]) -> None:
    """Compares a value with a JSON Schema.

    Raises:
      RunError: naming the entry that does not fit, what was expected and what came.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "as a whole"
        raise RunError(
            f"{where} is not as it was written: {_short(place)}: {_short(error.message)}; restore it from a copy"
        )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_WORDS else f"{text[:_LONGEST_WORDS]} ..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has {_short(twice)!r} twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it has an integer of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"its number {_short(digits)} is beyond what a double holds")
    return number


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _check_depth(value: Any) -> None:
    """Refuses what is nested deeper than `_DEEPEST`, and text that is not Unicode, such as half of a pair."""
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise RecursionError
