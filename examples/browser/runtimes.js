// An export in either runtime: a function of 64 pixels, a Float32Array, that gives the outputs by name.
import * as ort from "onnxruntime-web";
import { Tensor, loadAndCompile, loadLiteRt } from "@litertjs/core";

const from = (path) => new URL(path, import.meta.url).href;
const SHAPE = [1, 8, 8, 1];

async function onnx() {
  ort.env.wasm.wasmPaths = from("node_modules/onnxruntime-web/dist/");
  ort.env.wasm.numThreads = 1; // more need a page that is isolated (COOP and COEP headers)
  const session = await ort.InferenceSession.create(from("models/onnx/model.onnx"), { executionProviders: ["wasm"] });
  return async (pixels) => {
    const outputs = await session.run({ inputs: new ort.Tensor("float32", pixels, SHAPE) });
    return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, [...tensor.data]]));
  };
}

async function litert() {
  await loadLiteRt(from("node_modules/@litertjs/core/wasm/"));
  const model = await loadAndCompile(from("models/litert/model.tflite"), { accelerator: "wasm" });
  return async (pixels) => {
    const input = new Tensor(pixels, SHAPE);
    const outputs = await model.run({ inputs: input });
    const answer = Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, [...tensor.toTypedArray()]]));
    for (const tensor of [input, ...Object.values(outputs)]) tensor.delete(); // memory of WebAssembly is not collected
    return answer;
  };
}

export const RUNTIMES = { onnx, litert };
