"""What an export can be: one `Form` each, by name, to which anyone adds."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._registry import Registry
from tfp_bprune.exports.loaders.batches import in_batches
from tfp_bprune.types import BpruneError, ExportError, Json, Predictive, Storage, names_of

MOST_IN_BATCH = 2**16
BATCHES = Path(__file__).parent / "loaders" / "batches.py"
TOLERANCE, TOLERANCE_FLOAT16 = 1e-4, 0.02  # float16 keeps 11 bits of each weight: 5e-4, which add up over layers
Outputs = dict[str, np.ndarray]
ALL: tuple[Predictive, ...] = ("mean", "sampled", "moments")


@dataclass(frozen=True)
class Form:
    """An export format: how a network is written to files, and how these are run without this package.

    Attributes:
      name: the name in `export(format=...)` and in manifests.
      file: what an export folder holds besides its manifest: the name of a file, or of a folder of files.
      runtime: the Python module that runs it. The loader's process imports it before it reads anything of an export.
      convert: `convert(predictor, path)` writes a `Predictor` to `path`, the future place of `file`, in a folder that is hidden until
        the export is complete. `predictor.predict` is the TensorFlow function to write; `predictor.network` the Keras model behind
        it (for the mean, plain and without dead units); `predictor.heads` what its outputs mean. It also gets the keyword
        `float16` if `float16` is set below. It raises an `ExportError` for what the format cannot hold.
      load: path of a self-contained Python file, since the loader's process has the runtime but nothing of this package. It defines
        `load(path: str, threads: int)`, which returns a function from inputs to outputs: arrays [batch, ...] by name, for any
        batch size, with the outputs that `predictor.predict` gives. If the runtime takes something else than arrays, it also
        defines `prepare(inputs)`, which converts them and is not timed.
      title: the name in messages; by default `name`.
      extra: what to `pip install` for the runtime, if it is optional.
      predictives: the predictives that it can hold.
      float16: whether it can hold weights in float16.
      precisions: the precisions in which it can hold weights, each layer in its own. If there are others than "float32" and "float16",
        `convert` also gets the keywords `precision`, a `Storage` by layer name, and `representative`, examples by input name for
        the ranges of the activations, or None.
      sparse: whether it multiplies pruned kernels as sparse ones, by the costs given to `export`.
      tolerance, tolerance_float16: how far its answers may differ from TensorFlow's, absolute up to 1 and relative above; None if
        nothing is converted.
      files: a regular expression for the names of all files that an export may have; by default `file`.
      needed: the files that it must have; by default `file`.
      check: `check(name, content, path)` refuses a file that could do more than compute; it is called for each file of an untrusted
        export.
      payload: `payload(predictor, path)` counts the bytes of the weights alone in what was written.
      batch: whether it can hold a network for one batch size. `convert` then also gets the keyword `batch`, the size or None, and
        writes `predictor.for_batches_of(batch)`; the loaded function need not take other sizes.
      pixel_columns: whether its runtime is faster if a convolution of few channels reads several columns of pixels as the channels of
        one; see `prediction.columns`.
      unrolls: whether the steps of recurrent layers have to be written out, for a runtime whose loops need a known batch size; see
        `prediction.unrolling`.
      lacks: the functions that its runtime has no operation for and that are to be written as others; see `prediction.written`.
    """

    name: str
    file: str
    runtime: str
    convert: Callable[..., None]
    load: Path
    title: str = ""
    extra: str = ""
    predictives: tuple[Predictive, ...] = ALL
    float16: bool = False
    precisions: tuple[Storage, ...] = ()
    sparse: bool = False
    tolerance: float | None = TOLERANCE
    tolerance_float16: float = TOLERANCE_FLOAT16
    files: str = ""
    needed: tuple[str, ...] = ()
    check: Callable[[str, bytes, object], None] | None = None
    payload: Callable[[Any, Path], int] | None = None
    batch: bool = False
    pixel_columns: bool = False
    unrolls: bool = False
    lacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        defaults = {"title": self.name, "files": re.escape(self.file), "needed": (self.file,), "load": Path(self.load)}
        for several in ("needed", "precisions", "predictives", "lacks"):
            object.__setattr__(self, several, names_of(getattr(self, several), several))
        for field, value in defaults.items():
            if field == "load" or not getattr(self, field):
                object.__setattr__(self, field, value)
        if not self.precisions:
            object.__setattr__(self, "precisions", ("float32", "float16") if self.float16 else ("float32",))

    @property
    def by_layer(self) -> bool:
        """Whether layers can have a precision each."""
        return not set(self.precisions) <= {"float32", "float16"}

    def runner(self, path: Path, threads: int = 1, batch: int | None = None) -> Callable[[Outputs], Outputs]:
        """The loader's function for the file at `path`, in this process.

        It takes any number of examples, also of a file for batches of `batch`.
        """
        spec = importlib.util.spec_from_file_location(f"_loader_{self.name}", self.load)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        prepare, run = getattr(module, "prepare", dict), module.load(str(path), threads)
        return in_batches(lambda inputs: run(prepare(inputs)), batch) if batch else lambda inputs: run(prepare(inputs))


FORMS: Registry[Form] = Registry("format")


def register_form(form: Form) -> Form:
    """Registers an export format, for `export(format=form.name)`, `reload` and every command.

    Raises:
      BpruneError: its name is taken, or an attribute is not as `Form` requires.
    """
    if not isinstance(form, Form):
        raise BpruneError(f"got a {type(form).__name__}: expected a Form(name, file, runtime, convert, load)")
    if not form.load.is_file():
        raise BpruneError(f"the loader of the format {form.name!r}, {form.load}, is no file: expected a Python file")
    if not re.fullmatch(r"\w[\w.-]*", form.file) or form.file == "manifest.json":
        raise BpruneError(f"the format {form.name!r} writes {form.file!r}: expected the name of a file or folder")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in form.runtime.split(".")):
        raise BpruneError(f"the format {form.name!r} has the runtime {form.runtime!r}: expected the name of a module")
    return FORMS.add(form.name, form, form.convert)


def form_named(name: str) -> Form:
    """The form of this name.

    Raises:
      ExportError: there is none.
    """
    if name not in FORMS:
        raise ExportError(
            f"unknown format {name!r}: expected one of {', '.join(map(repr, FORMS))}, or import the module that registers it"
        )
    return FORMS[name]


def form_of(manifest: Json) -> Form:
    """The form of an export; the key `format` of a manifest is the manifest's own version.

    Raises:
      ExportError: nothing registered it.
    """
    return form_named(manifest.get("export_format", "savedmodel"))
