"""Examples in files of strangers, `predict EXPORT FILE` and `--data FILE`: arrays, tables, archives, pictures, and no files at all."""

from __future__ import annotations

import functools
import io
import os
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile.conftest import Hostile, Refused
from tfp_bprune.cli.main import main
from tfp_bprune.data.from_files import _read_csv, read_examples
from tfp_bprune.types import DataError

SHAPE = (8, 8, 1)
Maker = Callable[[Path], object]


class Harm:
    """Writes into a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.write_text, (self.place, "harm")


def npy(array: Any, pickled: bool = False) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=pickled)
    return content.getvalue()


def headed(shape: object, kind: str = "<f4", body: bytes = b"\0" * 4096, more: str = "") -> bytes:
    """An array of which the header says what it likes."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, {more}}}".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + body


def archive(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, one in entries:
            file.writestr(name, one)
    return content.getvalue()


@functools.cache
def zeros(numbers: int) -> bytes:
    """An archive of so many bytes of zeros, made without them: a thousandth of it."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("x.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(headed((numbers // 64, *SHAPE), "|u1", b""))
        for _ in range(numbers >> 24):
            entry.write(bytes(2**24))
    return content.getvalue()


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int = 8, height: int = 8, *before: bytes, data: bytes = zlib.compress(b"\0" * 72), colour: int = 0
) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


GOOD = np.ones((2, *SHAPE), np.float32)
BOMB = zlib.compress(bytes(2**28), 9)
ARRAYS: dict[str, bytes | Callable[[Path], bytes]] = {
    "pickled": lambda canary: npy(np.array([Harm(canary)], dtype=object), pickled=True),
    "a pickle alone": lambda canary: __import__("pickle").dumps(Harm(canary)),
    "a record": npy(np.zeros(2, [("a", "f4"), ("b", "f4")])),
    "complex": npy(GOOD.astype(complex)),
    "times": npy(GOOD.astype("datetime64[s]")),
    "words": npy(GOOD.astype(str)),
    "bytes": npy(GOOD.astype("S3")),
    "one number": npy(np.float32(1)),
    "none": npy(GOOD[:0]),
    "flat": npy(np.ones(64, np.float32)),
    "too wide": npy(np.ones((2, 8, 9, 1), np.float32)),
    "of no size": npy(np.ones((2, 0, 8, 1), np.float32)),
    "many sides": npy(np.ones((1,) * 30, np.float32)),
    "NaN": npy(GOOD * np.nan),
    "infinite": npy(-GOOD * np.inf),
    "beyond float32": npy(GOOD * 1e300),
    "10^12 examples": headed((10**12, *SHAPE)),
    "2^62 numbers": headed((2**60, 4)),
    "more than numbers": headed((10**30, 8)),
    "negative": headed((-2, *SHAPE)),
    "half an example": headed((0.5, *SHAPE)),
    "a shape of words": headed("'x'"),
    "a shape of none": headed("None"),
    "a word of 4 GB": headed((1,), "<U1000000000"),
    "an object by its header": headed((2, *SHAPE), "|O"),
    "a type of none": headed((2, *SHAPE), "evil"),
    "a type of parts": headed((2,), "f4,(1000000,1000)f4"),
    "a header that calls": headed("__import__('os').getpid()"),
    "a deep header": headed("(" * 4000 + ")" * 4000),
    "a long header": headed((2, *SHAPE), more="'x': '" + "x" * 2**20 + "'"),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "another version": b"\x93NUMPY\x09\x09" + npy(GOOD)[8:],
    "cut": npy(GOOD)[:200],
    "empty": b"",
    "an archive": archive(("x.npy", npy(GOOD))),
}
TABLES = {
    "10^6 columns": ",".join(["1"] * 10**6),
    "10^6 columns of one name": ",".join(["a"] * 10**6) + "\n" + ",".join(["1"] * 10**6),
    "10^5 rows of nothing": "\n" * 10**5,
    "a cell of a megabyte": "1" * 2**20,
    "a quote without end": '"' + "1,\n" * 10**5,
    "a number of 10^5 digits": ",".join(["1" * 10**5] * 64),
    "beyond numbers": ",".join(["1e999"] * 64),
    "NaN": ",".join(["nan"] * 64),
    "NUL": "\0" * 100,
    "ESC": ",".join(["\x1b[31m"] * 63 + ["1"]) + "\n",
    "markup": ",".join(["1"] * 63 + ["[/b]"]) + "\n",
    "a formula": ",".join(["1"] * 63 + ["=cmd()"]),
    "one column": "1\n" * 64,
    "rows of other lengths": ",".join(["1"] * 64) + "\n1",
}
BYTES = {"UTF-16": "1,2".encode("utf-16"), "no text": bytes(range(256)), "compressed": zlib.compress(b"1,2")}
ARCHIVES: dict[str, bytes | Callable[[Path], bytes]] = {
    "pickled": lambda canary: archive(
        ("x.npy", npy(np.array([Harm(canary)], dtype=object), pickled=True)), ("y.npy", npy(GOOD))
    ),
    "outside": lambda canary: archive((f"../../outside/{canary.name}.npy", npy(GOOD)), (f"{canary}.npy", npy(GOOD))),
    "names that print": archive(("\x1b[31m[/b].npy", npy(GOOD))),
    "names of a kilobyte": archive(*((f"{i}" + "x" * 1000 + ".npy", npy(GOOD)) for i in range(99))),
    "256 MB of zeros": lambda canary: zeros(2**28),
    "within each other": archive(("x.npy", archive(("x.npy", npy(GOOD))))),
    "garbage": archive(("x.npy", b"garbage"), ("y.npy", b"")),
    "empty": archive(),
    "of another kind": archive(("x.npy", npy(GOOD[:, :4])), ("y.npy", npy(np.zeros(2, int)))),
    "10^12 examples": archive(("x.npy", headed((10**12, *SHAPE))), ("y.npy", headed((10**12,), "<i8"))),
    "wrong sizes": patched(archive(("x.npy", npy(GOOD))), struct.pack("<I", len(npy(GOOD))), struct.pack("<I", 2**31)),
    "damaged deflate": patched(d := archive(("x.npy", npy(GOOD)), method=zipfile.ZIP_DEFLATED), d[45:60], b"\xff" * 15),
    "damaged lzma": patched(d := archive(("x.npy", npy(GOOD)), method=zipfile.ZIP_LZMA), d[50:60], b"\xff" * 10),
    "a dictionary of 4 GB": patched(d := archive(("x.npy", npy(GOOD)), method=zipfile.ZIP_LZMA), d[40:44], b"\xff" * 4),
    "an unknown method": patched(
        archive(("x.npy", npy(GOOD))),
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00",
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63\x00",
    ),
    "encrypted": patched(
        archive(("x.npy", npy(GOOD))), b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    ),
    "cut": archive(("x.npy", npy(GOOD)))[:-30],
    "no archive": b"PK\x03\x04" * 99,
    "10^4 names": lambda canary: archive(*[(f"x{i}.npy", b"") for i in range(10**4)]),
}
PICTURES: dict[str, bytes] = {
    "10^10 pixels": png(10**5, 10**5),
    "10^8 pixels": png(10**4, 10**4),
    "no pixels": png(0, 0),
    "negative": png(2**31, 8),
    "a text that unpacks": png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB)),
    "a profile that unpacks": png(8, 8, chunk(b"iCCP", b"a\0\0" + BOMB), colour=2),
    "pixels without end": png(8, 9, data=BOMB),
    "cut": png(data=zlib.compress(b"\0" * 20)),
    "damaged": png()[:-20] + b"\xff" * 20,
    "a chunk of 4 GB": png()[:33] + b"\x7f\xff\xff\xff" + b"IDAT",
    "a GIF": b"GIF89a" + b"\0" * 99,
    "a picture that names a file": b"%!PS-Adobe (/etc/passwd) run\n",
    "empty": b"",
}  # fmt: skip


def put(place: Path, content: bytes | Callable[[Path], bytes], outside: Path) -> Path:
    place.write_bytes(content if isinstance(content, bytes) else content(outside / "harm.txt"))
    return place


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # the latter are other people's
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (s, k)
        for s, kinds in {".npy": ARRAYS, ".npz": ARCHIVES, ".csv": TABLES, ".png": PICTURES}.items()
        for k in kinds
    ],
)
def test_predict(suffix: str, kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    found: Any = {".npy": ARRAYS, ".npz": ARCHIVES, ".csv": TABLES, ".png": PICTURES}[suffix][kind]
    place = put(tmp_path / f"x{suffix}", found.encode() if isinstance(found, str) else found, hostile.outside)
    assert len(refused("predict", hostile.run, place)) < 1000


def links(place: Path) -> dict[str, Path]:
    """Places that are no files, each under a name that is read."""
    made = {name: place / f"{name}.npy" for name in ("zero", "pipe", "loop", "nowhere", "folder", "holes")}
    made["zero"].symlink_to("/dev/zero")
    os.mkfifo(made["pipe"])
    made["loop"].symlink_to(made["loop"])
    made["nowhere"].symlink_to(place / "gone" / "x.npy")
    made["folder"].mkdir()
    made["holes"].touch()
    os.truncate(made["holes"], 2**42)
    return made | {"memory": Path("/proc/self/mem"), "device": Path("/dev/zero"), "nothing": place / "none.npy"}


@pytest.mark.parametrize("kind", ["zero", "pipe", "loop", "nowhere", "folder", "holes", "memory", "device", "nothing"])
def test_what_is_no_file_is_not_read(kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    refused("predict", hostile.run, links(tmp_path)[kind])


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_data_that_are_no_file_are_not_read(suffix: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    for kind in ("zero", "pipe", "nowhere", "folder", "holes"):
        place = links(tmp_path / kind if (tmp_path / kind).mkdir() is None else tmp_path)[kind]
        refused("evaluate", hostile.run, "--data", place.rename(place.with_suffix(suffix)))


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # the latter are other people's
@pytest.mark.parametrize(
    ("suffix", "kind"), [(s, k) for s, kinds in {".npz": ARCHIVES, ".csv": TABLES}.items() for k in kinds]
)
def test_data(suffix: str, kind: str, hostile: Hostile, refused: Refused, tmp_path: Path) -> None:
    found: Any = {".npz": ARCHIVES, ".csv": TABLES}[suffix][kind]
    place = put(tmp_path / f"x{suffix}", found.encode() if isinstance(found, str) else found, hostile.outside)
    assert len(refused("evaluate", hostile.run, "--data", place)) < 1000


def test_a_logger_follows_no_link_out_of_a_run(hostile: Hostile, refused: Refused) -> None:
    (hostile.run / "tensorboard").symlink_to(hostile.outside)
    words = ("train", "--dataset", "digits", "--hidden", "3", "--epochs", "1", "--batch-size", "500")
    line = refused(*words, "--out", hostile.run, "--resume", "--logger", "tensorboard")
    assert "symbolic link" in line


def test_a_report_writes_no_markup_of_names(hostile: Hostile, tmp_path: Path) -> None:
    run = hostile.run.rename(tmp_path / "<img src=x onerror=alert(1)>")
    assert main(["report", str(run), "--out", str(tmp_path / "page.html"), "--quiet"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    hostile.run = run


def test_a_table_takes_little_more_memory_than_its_file(tmp_path: Path) -> None:
    place = tmp_path / "x.csv"
    place.write_text(",".join(f"x{i}" for i in range(64)) + "\n" + (",".join(["0.1234"] * 64) + "\n") * 10_000)
    tracemalloc.start()
    header, numbers = _read_csv(place)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(header), numbers.shape) == (64, (10_000, 64))
    assert (numbers == 0.1234).all()
    assert peak < 5 * place.stat().st_size


def test_an_archive_unpacks_into_memory_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((100, 10)))
    read_examples(tmp_path / "x.npz", {"x": {"shape": [10], "dtype": "float32"}})
    monkeypatch.setattr("tfp_bprune.data.from_files.free_memory", lambda: 4000.0)
    with pytest.raises(DataError, match=r"unpacks to more than 4e\+03 bytes: expected a smaller file"):
        read_examples(tmp_path / "x.npz", {"x": {"shape": [10], "dtype": "float32"}})
