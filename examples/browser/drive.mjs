// Opens the page in headless Chromium: `node drive.mjs ADDRESS DIGITS.json [PICTURE.png]` prints what it answered, as JSON.
import { existsSync, readFileSync } from "node:fs";
import puppeteer from "puppeteer-core";

const [address, file, picture] = process.argv.slice(2);
const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/google-chrome"].find((path) => path && existsSync(path));
// Its sandbox needs user namespaces, which containers seldom have; the page is our own.
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
const [addresses, errors] = [new Set(), []];
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 900, height: 640, deviceScaleFactor: 1 });
  page.on("request", (request) => addresses.add(request.url()));
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(address, { waitUntil: "networkidle0" });
  const answers = {};
  for (const runtime of ["onnx", "litert"]) {
    answers[runtime] = await page.evaluate(
      async (runtime, digits, module) => {
        const { answer } = await import(module);
        const found = [];
        for (const pixels of digits) found.push(await answer(runtime, pixels));
        return found;
      },
      runtime, JSON.parse(readFileSync(file)), new URL("page.js", address).href,
    );
  }
  const shown = await drawn(page);
  if (picture) await page.screenshot({ path: picture });
  console.log(JSON.stringify({ answers, shown, addresses: [...addresses], errors }));
} finally {
  await browser.close();
}

/** Draws a seven by mouse, in one stroke, and reads what the page says of it by each runtime. */
async function drawn(page) {
  const { x, y, width } = await (await page.$("#board")).boundingBox();
  const stroke = [[0.3, 0.2], [0.5, 0.19], [0.71, 0.2], [0.6, 0.45], [0.5, 0.65], [0.43, 0.85]];
  const [first, ...others] = stroke.map(([right, down]) => [x + width * right, y + width * down]);
  await page.mouse.move(...first);
  await page.mouse.down();
  for (const point of others) await page.mouse.move(...point, { steps: 8 });
  await page.mouse.up();
  const shown = {};
  for (const runtime of ["litert", "onnx"]) {
    await page.evaluate(() => (document.getElementById("status").textContent = ""));
    await page.select("#runtime", runtime);
    await page.waitForFunction(() => document.getElementById("status").textContent !== "");
    const said = (id) => page.$eval(`#${id}`, (element) => element.textContent);
    shown[runtime] = {};
    for (const id of ["label", "confidence", "entropy", "epistemic", "aleatoric", "status"]) shown[runtime][id] = await said(id);
  }
  return shown;
}
