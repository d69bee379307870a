"""Serves the SavedModel of an export with MLServer: the Open Inference Protocol over HTTP and gRPC."""

import asyncio
from itertools import zip_longest

import numpy as np
import tensorflow as tf
from mlserver import MLModel
from mlserver.codecs.numpy import to_datatype
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, RequestInput, ResponseOutput
from mlserver.utils import get_model_uri


class SavedModelRuntime(MLModel):
    """Serves the signature `serving_default` of the SavedModel that `parameters.uri` of the settings names."""

    async def load(self) -> bool:
        self._model = tf.saved_model.load(await get_model_uri(self.settings))  # kept: it owns the variables
        self._serve = self._model.signatures["serving_default"]
        self._specs = self._serve.structured_input_signature[1]
        self.inputs = [described(name, spec) for name, spec in self._specs.items()]
        self.outputs = [described(name, spec) for name, spec in self._serve.structured_outputs.items()]
        one_size = all(-1 not in one.shape[1:] for one in self.inputs)
        expect(one_size or self.settings.max_batch_size < 2, "max_batch_size 0 for inputs of any size", self.inputs)
        self._batched, self.predict = self.predict, self._checked  # `predict` joins requests: MLServer replaced it
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers requests that were checked, joined to one."""
        given = {i.name: np.array(i.data.root, self._specs[i.name].dtype.name).reshape(i.shape) for i in payload.inputs}
        found = await asyncio.to_thread(self._serve, **{name: tf.constant(x) for name, x in given.items()})
        outputs = [encoded(name, value.numpy()) for name, value in found.items()]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)

    async def _checked(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers one request.

        MLServer joins requests by shape and type of the first: what is wrong is refused before. Shielded, since one
        that is given up would leave the others of its batch without an answer.
        """
        there, wanted = ([one.name for one in some] for some in (self.outputs, payload.outputs or self.outputs))
        expect({*wanted} <= {*there}, f"outputs among {there}", wanted)
        given = [one.name for one in payload.inputs]
        expect(sorted(given) == sorted(self._specs), f"inputs {list(self._specs)}", given)
        inputs = [checked(one, self._specs[one.name]) for one in payload.inputs]
        expect(len({one.shape[0] for one in inputs}) == 1, "as many examples of each input", [i.shape for i in inputs])
        response = await asyncio.shield(self._batched(InferenceRequest(id=payload.id, inputs=inputs)))
        response.outputs = [one for one in response.outputs if one.name in wanted]
        return response


def described(name: str, spec: tf.TensorSpec) -> MetadataTensor:
    return MetadataTensor(name=name, datatype=to_datatype(spec.dtype.name), shape=[n or -1 for n in spec.shape])


def encoded(name: str, x: np.ndarray) -> ResponseOutput:
    return ResponseOutput(name=name, shape=x.shape, datatype=to_datatype(x.dtype), data=x.ravel().tolist())


def checked(given: RequestInput, spec: tf.TensorSpec) -> RequestInput:
    """An input as the network takes it, its values in one flat list; what else comes is refused with status 400."""
    needed, where = described(given.name, spec), f"for input {given.name!r}"
    expect(given.datatype == needed.datatype, f"{needed.datatype} {where}", given.datatype)
    fit = [g if n == -1 else n for n, g in zip_longest(needed.shape, given.shape, fillvalue=0)]
    expect(given.shape == fit and min(fit) > 0, f"the shape {needed.shape} {where}", given.shape)
    try:
        values = np.array(getattr(given.data, "root", given.data))
        expect(values.dtype.kind in ("iu" if spec.dtype.is_integer else "iuf"), f"numbers {where}", values.dtype)
        x = values.astype(spec.dtype.name).reshape(given.shape)
    except ValueError as error:
        raise InferenceError(f"expected {given.shape} numbers {where}, got {error}") from None
    expect(bool(np.isfinite(x).all()), f"finite numbers {where}", "NaN or infinite ones")
    return RequestInput(name=given.name, shape=given.shape, datatype=given.datatype, data=x.ravel().tolist())


def expect(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise InferenceError(f"expected {expected}, got {got}")
