"""Asks the server about images: `python client.py moments images.npy`, with `--grpc` over gRPC."""

from __future__ import annotations

import argparse
import json
import os
import urllib.request

import numpy as np

HTTP, GRPC = (os.environ.get(f"MLSERVER_{kind}_PORT", port) for kind, port in (("HTTP", "8080"), ("GRPC", "8081")))


def by_http(model: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name, as JSON brings them."""
    given = {"name": "inputs", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [given]}).encode()
    url = f"http://127.0.0.1:{HTTP}/v2/models/{model}/infer"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        outputs = json.load(response)["outputs"]
    return {one["name"]: np.array(one["data"], np.float32).reshape(one["shape"]) for one in outputs}


def by_grpc(model: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name, as raw bytes."""
    import grpc
    from mlserver.grpc import dataplane_pb2, dataplane_pb2_grpc

    request = dataplane_pb2.ModelInferRequest(model_name=model, raw_input_contents=[x.astype("<f4").tobytes()])
    request.inputs.add(name="inputs", datatype="FP32", shape=x.shape)
    with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
        response = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    outputs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {one.name: np.frombuffer(raw, "<f4").reshape(one.shape) for one, raw in outputs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--grpc", action="store_true")
    words = parser.parse_args()
    answer = (by_grpc if words.grpc else by_http)(words.model, np.load(words.file).astype(np.float32))
    print("class  probability  epistemic  aleatoric (nats)")
    for p, epistemic, aleatoric in zip(answer["probabilities"], answer["epistemic"], answer["aleatoric"], strict=True):
        print(f"{p.argmax():5}  {p.max():11.4f}  {epistemic:9.4f}  {aleatoric:9.4f}")
