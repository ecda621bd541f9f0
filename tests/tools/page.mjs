// Opens a page in a headless Chromium, runs a script in it as a visitor would use it, and prints what that resolves to.
//
//   node tests/tools/page.mjs CHROMIUM PROFILE_FOLDER URL < script.js
//
// The script is the body of an async function. Chromium is spoken to through a pipe (--remote-debugging-pipe: messages of
// JSON, each ended by a zero byte), which needs no port and no library.

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";

const PATIENCE = 60_000;
const [chromium, profile, url] = process.argv.slice(2);
const script = readFileSync(0, "utf8");
const timer = setTimeout(() => fail(`${url} took longer than ${PATIENCE / 1000} s`), PATIENCE);

const child = spawn(
  chromium,
  ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
   "--disable-sync", "--no-first-run", `--user-data-dir=${profile}`, "--remote-debugging-pipe", "about:blank"],
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

const waiting = new Map();
let count = 0;
let rest = "";
const isLoaded = new Promise((resolve) => waiting.set("Page.loadEventFired", { resolve }));
child.stdio[4].setEncoding("utf8").on("data", (data) => {
  const messages = (rest + data).split("\0");
  rest = messages.pop();
  for (const { id, method, result, error } of messages.map((message) => JSON.parse(message))) {
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

try {
  const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true });
  await ask("Page.enable", {}, sessionId);
  const { errorText } = await ask("Page.navigate", { url }, sessionId);
  if (errorText) throw new Error(`${url} cannot be opened: ${errorText}`);
  await isLoaded;
  const expression = `(async () => { ${script} })()`;
  const answer = await ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true }, sessionId);
  if (answer.exceptionDetails) throw new Error(answer.exceptionDetails.exception?.description ?? "the script failed");
  console.log(JSON.stringify(answer.result.value));
  isDone = true;
  ask("Browser.close"); // Nobody waits for the answer: Chromium may be gone before it comes.
} catch (error) {
  fail(error.message);
}
