// Asks for the page again and replaces what has changed. Everything is rendered by the relay; without this script the
// browser loads the whole page again.
"use strict";

const EVERY = 5000;
const PATIENCE = 10_000;
let answeredAt = new Date();

/** Replaces an element's content, unless somebody is reading it with a selection; keeps the focus. */
function replace(element, next) {
  const selection = getSelection();
  const isRead = !selection.isCollapsed && selection.containsNode(element, true);
  if (isRead || element.innerHTML === next.innerHTML) return;
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  element.replaceChildren(...next.childNodes);
  if (focused) document.getElementById(focused)?.focus();
}

async function update() {
  const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`the relay answered ${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const { version } = page.documentElement.dataset;
  if (version !== document.documentElement.dataset.version) return location.reload();
  for (const element of document.querySelectorAll("[data-live]")) {
    const next = page.getElementById(element.id);
    if (next) replace(element, next);
  }
  document.title = page.title;
}

function show(isStale) {
  const since = document.getElementById("since");
  const text = answeredAt.toISOString().slice(11, 19) + " UTC";
  if (isStale && since.textContent !== text) since.textContent = text;
  document.getElementById("stale").hidden = !isStale;
}

async function again() {
  try {
    // A page that nobody sees needs no update; it gets one when it is seen again.
    if (!document.hidden) {
      await update();
      answeredAt = new Date();
      show(false);
    }
  } catch {
    show(true);
  }
  setTimeout(again, EVERY);
}

setTimeout(again, EVERY);
