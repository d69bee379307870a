"""What is written aside, under a name that nobody reads, until it is whole and gets its own.

As long as a process writes it holds a lock on the file or folder, which goes with the process: so what a killed one left
is told from what a living one writes, and the next writer in the same place removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tfp_bprune.types import RunError

TEMPORARY = ".partial-"
_FOLDER = TEMPORARY + "export-"  # in folders that are not ours alone
_FILE = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")
_SCRATCH = "tfp-bprune-"
_GONE = (BlockingIOError, FileNotFoundError)


def _lock(handle: int) -> None:
    """Locks what is open.

    Raises:
      BlockingIOError: another process holds it.
      FileNotFoundError: another process has removed it.
      OSError: the file system has no locks.
    """
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fstat(handle).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _lock_if_possible(handle: int) -> None:
    """As `_lock`; where there are no locks nothing is taken for a leftover either."""
    try:
        _lock(handle)
    except _GONE:
        raise
    except OSError:
        return


def new_file(place: int) -> tuple[str, int]:
    """A new file in the folder with the descriptor `place`: its name and its descriptor, locked until that is closed.

    What killed processes left there is removed first.
    """
    for name in os.listdir(place):
        if _FILE.fullmatch(name):
            remove_file(name, place)
    while True:
        name = TEMPORARY + secrets.token_hex(8)
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=place)
        try:
            _lock_if_possible(handle)
            return name, handle
        except _GONE:  # one that another process took for a leftover before it was locked
            os.close(handle)


def remove_file(name: str, place: int) -> None:
    """Removes a file that was written aside in the folder `place`, unless a process still writes it."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=place)
            return
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
        try:
            _lock(handle)
            os.unlink(name, dir_fd=place)
        finally:
            os.close(handle)


def remove_leftover(folder: Path) -> None:
    """Removes a folder that a process wrote into, unless one still does and so holds its lock; see `held`."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            folder.unlink()
        else:
            with held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes all that killed processes left aside below a folder."""
    for place, folders, files in os.walk(folder):
        for name in [name for name in folders if name.startswith(TEMPORARY)]:
            folders.remove(name)
            remove_leftover(Path(place) / name)
        aside = [name for name in files if name.startswith(TEMPORARY)]
        if aside:
            with contextlib.suppress(OSError), _opened(Path(place), 0) as here:
                for name in aside:
                    remove_file(name, here)


@contextlib.contextmanager
def _opened(folder: Path, flags: int = os.O_NOFOLLOW) -> Iterator[int]:
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags)
    try:
        yield here
    finally:
        os.close(here)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks a folder as long as this process writes into it.

    Raises:
      OSError: another process does, the folder is gone, or the file system has no locks.
    """
    with _opened(folder) as here:
        _lock(here)
        yield


def check_room(path: Path) -> None:
    """Refuses a place that cannot be written, before anything that takes long; writing may still fail.

    Raises:
      RunError: this user may not write there.
    """
    place = next(one for one in (path.absolute().parent, *path.absolute().parents) if one.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return
    denied = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
    said = os.strerror(denied if place.is_dir() else errno.ENOTDIR)
    raise RunError(f"cannot write {path}: {said}; choose a folder that can be written")


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to be written and then put into its place; it vanishes if that does not happen.

    What killed processes left there is removed.

    Raises:
      RunError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(_FOLDER + "*"):
                remove_leftover(leftover)
            folder = _made(path.parent, _FOLDER, stack)
            folder.chmod(0o755)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
        yield folder


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A private folder, in the system's place for such, for what one process hands another; it vanishes afterwards.

    What killed processes of this user left there is removed.
    """
    place = Path(tempfile.gettempdir())
    for leftover in place.glob(_SCRATCH + "*"):
        with contextlib.suppress(OSError):
            if leftover.lstat().st_uid == os.getuid():
                remove_leftover(leftover)
    with contextlib.ExitStack() as stack:
        yield _made(place, _SCRATCH, stack)


@contextlib.contextmanager
def own_temporaries() -> Iterator[None]:
    """Has Python's libraries put what they write for a while into a folder of `scratch`, where there can be one."""
    before = tempfile.tempdir
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, tempfile, "tempdir", before)
        with contextlib.suppress(OSError):
            tempfile.tempdir = str(stack.enter_context(scratch()))
        yield


def _made(place: Path, start: str, stack: contextlib.ExitStack) -> Path:
    """A new folder in `place`, held until the end, when it is removed.

    One that another process took for a leftover before it was held is made anew.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=start, dir=place))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(*_GONE):
            _lock_if_possible(stack.enter_context(_opened(folder)))
            return folder


def put_in_place(fresh: Path, path: Path, before: Callable[[], None] = lambda: None) -> None:
    """Renames `fresh` to `path`, in the place of what is there.

    Args:
      before: called when all is ready, before what is there goes.

    Raises:
      RunError: it cannot be, or another process is writing there; what is there stays.
    """
    old = fresh.with_name(fresh.name + "-old")
    with contextlib.ExitStack() as stack:
        try:
            for place in (path, *path.rglob(_FOLDER + "*")):  # which living processes that write there have locked
                with contextlib.suppress(FileNotFoundError):
                    _lock_if_possible(stack.enter_context(_opened(place)))
            before()
            _exchange(fresh, path, old)
        except BlockingIOError as error:
            raise RunError(f"{path} is being written by another process: wait for it") from error
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    remove_leftover(old)


def _exchange(fresh: Path, path: Path, old: Path) -> None:
    """Renames `path`, if it is there, to `old` and `fresh` to `path`: both or none, unless this process is killed between."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            if old.exists() and not path.exists():
                old.rename(path)
        raise
