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
    """How a network becomes files, and how these are run without this package.

    Attributes:
      name: what `export(format=...)` and a manifest call it.
      file: what an export folder holds beside its manifest: the name of a file, or of a folder of files.
      runtime: the module that runs it, which the loader's process imports before anything of an export.
      convert: writes `convert(predictor, path)`: a `Predictor` to `path`, where `file` is to be, inside a folder that
        nobody sees until all is there. `predictor.predict` is the TensorFlow function to write; `predictor.network` the
        Keras model behind it (plain and without dead units for the mean), `predictor.heads` what its outputs mean. With
        `float16` it also takes the keyword `float16`. It raises an `ExportError` for what the form cannot hold.
      load: a Python file that stands alone: the loader's process has the runtime, and nothing of this package. It defines
        `load(path: str, threads: int)`, which gives a function from inputs, arrays [batch, ...] by name, to the named
        outputs that `predictor.predict` gives, arrays [batch, ...], for any batch size; and, where the runtime takes
        something else than arrays, `prepare(inputs)`, which makes that of them and is not timed.
      title: as messages call it; by default the name.
      extra: what `pip install` gets for the runtime, where it is optional.
      predictives: those that it can hold.
      float16: whether it can hold weights in half the bytes.
      precisions: what it can hold weights in, each layer in another one; with more than "float32" and "float16" among them
        `convert` takes the keywords `precision`, a `Storage` by the layer's name, and `representative`, examples as arrays by
        the input's name by which it may find ranges of activations, or None.
      sparse: whether it multiplies pruned kernels as sparse ones, by the costs that `export` is given.
      tolerance, tolerance_float16: what its answers may differ by from TensorFlow's, absolute up to 1 and relative above;
        None where nothing is converted.
      files: a regular expression for all names that an export may hold, `needed` those that it must; both by default `file`.
      check: `check(name, content, path)` refuses a file of an export that could do more than compute; called for each
        file of an export that is not trusted.
      payload: `payload(predictor, path)` counts the bytes of the weights alone in what was written.
      batch: whether it can hold a network for batches of one size. `convert` then takes the keyword `batch`, the size or None,
        and writes `predictor.for_batches_of(batch)`; what is loaded need not take other sizes.
      pixel_columns: whether its runtime multiplies convolutions of few channels faster with several columns of pixels as the
        channels of one, see `prediction.columns`.
      unrolls: whether the steps of recurrent layers are written out, for a runtime whose loops want to know the size of a batch,
        see `prediction.unrolling`.
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

    def __post_init__(self) -> None:
        defaults = {"title": self.name, "files": re.escape(self.file), "needed": (self.file,), "load": Path(self.load)}
        for several in ("needed", "precisions", "predictives"):
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
        """The loader's function for the file at `path`, in this process; for any number of examples, also of a file for
        batches of `batch`."""
        spec = importlib.util.spec_from_file_location(f"_loader_{self.name}", self.load)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        prepare, run = getattr(module, "prepare", dict), module.load(str(path), threads)
        return in_batches(lambda inputs: run(prepare(inputs)), batch) if batch else lambda inputs: run(prepare(inputs))


FORMS: Registry[Form] = Registry("format")


def register_form(form: Form) -> Form:
    """Adds a form, for `export(format=form.name)`, `reload` and every command.

    Raises:
      BpruneError: its name is taken, or it is not as `Form` says.
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
