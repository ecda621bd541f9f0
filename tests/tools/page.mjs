// Opens a page in a headless Chromium, runs a script in it as a visitor would, and prints the script's result.
//
//   node tests/tools/page.mjs CHROMIUM PROFILE_FOLDER URL [OPTION…] < script.js
//
//   --width=1000 --height=800   the size of the window; narrow ones are those of a telephone
//   --dark                      the visitor prefers dark pages
//   --without-scripts           the page's own scripts do not run
//   --picture=FILE.png          a picture of the whole page after the script
//   --report                    prints { result, requests, errors }: URLs asked for, and what the console shows as errors
//
// The script is the body of an async function. It uses Chromium through a pipe (--remote-debugging-pipe: messages of
// JSON, each ended by a zero byte), which needs no port and no library.

import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";

const PATIENCE = 60_000;
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    width: { type: "string" }, height: { type: "string", default: "800" }, picture: { type: "string" },
    dark: { type: "boolean" }, "without-scripts": { type: "boolean" }, report: { type: "boolean" },
  },
});
const [chromium, profile, url] = positionals;
const script = readFileSync(0, "utf8");
const timer = setTimeout(() => fail(`${url} took longer than ${PATIENCE / 1000} s`), PATIENCE);

const child = spawn(
  chromium,
  ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
   "--disable-sync", "--no-first-run", "--hide-scrollbars", `--user-data-dir=${profile}`, "--remote-debugging-pipe",
   "about:blank"],
  { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
);

function fail(reason) {
  clearTimeout(timer);
  console.error(`page.mjs: ${reason}`);
  child.kill("SIGKILL");
  process.exitCode = 1;
}

let isDone = false;
child.on("error", (error) => fail(`${chromium} does not start: ${error.message}`));
child.on("exit", (code, killed) => {
  clearTimeout(timer);
  if (!isDone && !process.exitCode) fail(`Chromium ended early (${killed ?? code})`);
});
child.stdio[3].on("error", () => {}); // One that is gone has been told of above.

const [requests, errors] = [[], []];
const told = {
  "Network.requestWillBeSent": ({ request }) => requests.push(request.url),
  "Runtime.exceptionThrown": ({ exceptionDetails: { exception, text } }) => errors.push(exception?.description ?? text),
  "Runtime.consoleAPICalled": ({ type, args }) => {
    if (type === "error" || type === "assert") errors.push(args.map(({ value, description }) => value ?? description).join(" "));
  },
  // Refusals by the page's policy and resources that are missing.
  "Log.entryAdded": ({ entry: { level, text, url } }) => { if (level === "error") errors.push(`${text} ${url ?? ""}`); },
};

const waiting = new Map();
let count = 0;
let rest = "";
const isLoaded = new Promise((resolve) => waiting.set("Page.loadEventFired", { resolve }));
child.stdio[4].setEncoding("utf8").on("data", (data) => {
  const messages = (rest + data).split("\0");
  rest = messages.pop();
  for (const { id, method, params, result, error } of messages.map((message) => JSON.parse(message))) {
    told[method]?.(params);
    const { resolve, reject } = waiting.get(id ?? method) ?? {};
    if (error) reject?.(new Error(error.message)); else resolve?.(result);
    waiting.delete(id ?? method);
  }
});

function ask(method, params, sessionId) {
  const id = ++count;
  child.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0");
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

/** Makes the window and the visitor as the options say. */
async function prepare(sessionId) {
  for (const domain of ["Page", "Network", "Runtime", "Log"]) await ask(`${domain}.enable`, {}, sessionId);
  if (options.width) {
    const size = { width: Number(options.width), height: Number(options.height) };
    const metrics = { ...size, deviceScaleFactor: 1, mobile: size.width < 600 };
    await ask("Emulation.setDeviceMetricsOverride", metrics, sessionId);
  }
  const features = [{ name: "prefers-color-scheme", value: options.dark ? "dark" : "light" }];
  await ask("Emulation.setEmulatedMedia", { features }, sessionId);
  await ask("Emulation.setScriptExecutionDisabled", { value: options["without-scripts"] ?? false }, sessionId);
}

try {
  const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true });
  await prepare(sessionId);
  const { errorText } = await ask("Page.navigate", { url }, sessionId);
  if (errorText) throw new Error(`${url} cannot be opened: ${errorText}`);
  await isLoaded;
  const expression = `(async () => { ${script} })()`;
  const answer = await ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true }, sessionId);
  if (answer.exceptionDetails) throw new Error(answer.exceptionDetails.exception?.description ?? "the script failed");
  if (options.picture) {
    const { data } = await ask("Page.captureScreenshot", { format: "png", captureBeyondViewport: true }, sessionId);
    writeFileSync(options.picture, Buffer.from(data, "base64"));
  }
  const result = answer.result.value;
  console.log(JSON.stringify(options.report ? { result, requests, errors } : result));
  isDone = true;
  ask("Browser.close"); // Nobody waits for the answer: Chromium may be gone before it comes.
} catch (error) {
  fail(error.message);
}
