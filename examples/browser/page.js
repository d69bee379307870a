// What is drawn becomes 8 x 8 pixels as those of scikit-learn's digits: of each block of 4 x 4 in 32 x 32, how many have ink.
import { RUNTIMES } from "./runtimes.js";

const at = (id) => document.getElementById(id);
const board = at("board").getContext("2d", { willReadFrequently: true });
const { width } = board.canvas;
const CLASSES = 10;
const loaded = {}; // promises of runtimes, by name

/** The outputs of an export by name; `pixels` are 64 numbers in 0 to 16. */
export function answer(runtime, pixels) {
  loaded[runtime] ??= RUNTIMES[runtime]();
  return loaded[runtime].then((run) => run(Float32Array.from(pixels)));
}

/** The box around what is drawn; its width is below 1 where nothing is. */
function inkedBox() {
  const { data } = board.getImageData(0, 0, width, width);
  const inked = (x, y) => data[4 * (y * width + x) + 3] > 127;
  let [left, right, top, bottom] = [width, -1, width, -1];
  for (let y = 0; y < width; y++)
    for (let x = 0; x < width; x++)
      if (inked(x, y)) [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  return { left, top, width: right - left + 1, height: bottom - top + 1 };
}

/** The drawing as the dataset has its digits: as high as the frame, in the middle of it. */
function pixels() {
  const box = inkedBox();
  if (box.width < 1) return null;
  const small = new OffscreenCanvas(32, 32).getContext("2d");
  const scale = Math.min(32 / box.height, 32 / box.width);
  const [w, h] = [box.width * scale, box.height * scale];
  small.imageSmoothingQuality = "high";
  small.drawImage(board.canvas, box.left, box.top, box.width, box.height, (32 - w) / 2, (32 - h) / 2, w, h);
  const { data } = small.getImageData(0, 0, 32, 32);
  const found = new Float32Array(64);
  for (let y = 0; y < 32; y++)
    for (let x = 0; x < 32; x++)
      if (data[4 * (32 * y + x) + 3] > 127) found[8 * (y >> 2) + (x >> 2)] += 1;
  return found;
}

function show({ probabilities, entropy, epistemic, aleatoric }, seen) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  at("label").textContent = best;
  at("confidence").textContent = `with probability ${probabilities[best].toFixed(2)}`;
  [...at("bars").children].forEach((bar, label) => {
    bar.className = label === best ? "best" : "";
    bar.firstChild.style.height = `${80 * probabilities[label]}px`;
  });
  for (const [name, [value]] of Object.entries({ entropy, epistemic, aleatoric })) {
    at(name).textContent = value.toFixed(3);
    if (name !== "entropy") at(`${name}-bar`).style.width = `${(100 * Math.max(value, 0)) / Math.log(CLASSES)}%`;
  }
  const image = new ImageData(8, 8);
  seen.forEach((value, place) => image.data.set([28, 36, 48, (255 * value) / 16], 4 * place));
  at("seen").getContext("2d").putImageData(image, 0, 0);
}

let latest = 0;

/** Answers what is drawn; of answers that come late, the latest is shown. */
export async function update() {
  const [turn, seen, runtime] = [++latest, pixels(), at("runtime").value];
  if (!seen) return;
  try {
    await answer(runtime, seen); // loads it, so that the time is that of an answer
    const begun = performance.now();
    const outputs = await answer(runtime, seen);
    const ms = performance.now() - begun;
    if (turn !== latest) return;
    show(outputs, seen);
    at("status").textContent = `answered in ${ms.toFixed(1)} ms; nothing left this machine`;
  } catch (error) {
    at("status").textContent = `${runtime}: ${error.message ?? error}`;
  }
}

let last = null;

function line(event) {
  const scale = width / board.canvas.clientWidth;
  const point = [event.offsetX * scale, event.offsetY * scale];
  board.lineWidth = width / 11;
  board.lineCap = board.lineJoin = "round";
  board.beginPath();
  board.moveTo(...(last ?? point));
  board.lineTo(...point);
  board.stroke();
  last = point;
}

for (let label = 0; label < CLASSES; label++) {
  const bar = document.createElement("li");
  bar.append(document.createElement("i"), String(label));
  at("bars").append(bar);
}
at("most").textContent = Math.log(CLASSES).toFixed(2);
board.canvas.addEventListener("pointerdown", (event) => {
  board.canvas.setPointerCapture(event.pointerId);
  line(event);
});
board.canvas.addEventListener("pointermove", (event) => {
  if (last) line(event);
});
for (const kind of ["pointerup", "pointercancel"])
  board.canvas.addEventListener(kind, () => {
    last = null;
    update();
  });
at("runtime").addEventListener("change", update);
at("clear").addEventListener("click", () => {
  latest++;
  board.clearRect(0, 0, width, width);
  at("status").textContent = "ready";
});
at("status").textContent = "ready";
