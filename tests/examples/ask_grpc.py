"""Asks MLServer over gRPC; runs in MLServer's Python: `ask_grpc.py PORT`, with requests as JSON on standard input.

A request is `{"model", "name", "datatype", "shape", "data", "raw", "timeout"}`; all are sent at once.
"""

from __future__ import annotations

import json
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from mlserver.grpc import dataplane_pb2, dataplane_pb2_grpc

FIELDS = {"FP32": "fp32_contents", "FP64": "fp64_contents", "INT64": "int64_contents"}


def asked(stub: Any, given: dict[str, Any]) -> dict[str, Any]:
    request = dataplane_pb2.ModelInferRequest(model_name=given["model"])
    tensor = request.inputs.add(name=given["name"], datatype=given["datatype"], shape=given["shape"])
    if given.get("raw"):
        request.raw_input_contents.append(struct.pack(f"<{len(given['data'])}f", *given["data"]))
    else:
        getattr(tensor.contents, FIELDS[given["datatype"]]).extend(given["data"])
    try:
        response = stub.ModelInfer(request, timeout=given.get("timeout", 120))
    except grpc.RpcError as error:
        return {"code": error.code().name, "said": error.details()}
    outputs = {one.name: list(one.contents.fp32_contents) for one in response.outputs}
    for one, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        outputs[one.name] = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return {"code": "OK", "outputs": outputs}


with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
    requests = json.load(sys.stdin)
    grpc.channel_ready_future(channel).result(timeout=120)
    stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
    with ThreadPoolExecutor(len(requests)) as pool:
        json.dump(list(pool.map(lambda given: asked(stub, given), requests)), sys.stdout)
