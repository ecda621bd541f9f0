// Asks Prometheus for every expression of a Grafana dashboard and draws the panels into one HTML page, without Grafana.
//
//   node preview.mjs PROMETHEUS_URL DASHBOARD_JSON OUTPUT_HTML [--rate-interval=30s] [--range=1h]
//
// Prints "ok", "no data" or "error" for each expression and for each variable, and exits with 1 if any is not ok: a
// misspelt name, a missing label and a query that does not parse all appear as one of the two. Exits with 2 when it
// cannot work at all: wrong arguments, an unreadable dashboard, an unknown unit. --rate-interval stands for
// $__rate_interval and should be at least four times the scrape interval, as in Grafana. Without --range, the
// dashboard's own time range is used.
//
// It supports only the settings of Grafana that our dashboard uses. The drawing is accurate enough to judge titles,
// units, order and shapes; it does not prove that Grafana draws the same.

import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";

const PAGE_WIDTH = 1600;
const MARGIN = 16;
// Grafana's grid: 24 columns, rows of 30 pixels, 8 pixels between panels.
const COLUMNS = 24;
const ROW_HEIGHT = 30;
const GAP = 8;
const COLUMN_WIDTH = (PAGE_WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS;
// Grafana's classic palette, of which the first colours are told apart most easily.
const PALETTE = ["#56a64b", "#e0a30c", "#3aa5c9", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#967302"];
const NAMED_COLOURS = { green: "#37872d", orange: "#d9730d", red: "#c4162a", blue: "#1f60c4", transparent: "#888" };

// ------------------------------------------------------------------------------------------------- expressions

/** Seconds of a duration like 30s, 5m, 1h or 1d. */
function seconds(duration) {
  const [, number, unit] = /^(\d+)([smhd])$/.exec(duration) ?? fail(`not a duration: ${duration}`);
  return Number(number) * { s: 1, m: 60, h: 3600, d: 86_400 }[unit];
}

/** The expression as Grafana would send it with everything selected. */
function substitute(expression, variables, rateInterval) {
  const filled = variables.reduce(
    (text, name) => text.replaceAll(new RegExp(`\\$(${name}\\b|\\{${name}\\})`, "g"), ".*"),
    expression.replaceAll("$__rate_interval", rateInterval),
  );
  // A variable that is not replaced would reach Prometheus as text and perhaps silently match nothing.
  return /\$\w|\$\{/.test(filled) ? fail(`an unknown variable in: ${filled}`) : filled;
}

/** An answer of Prometheus's API, or an exception that says what it did not like. */
async function ask(prometheus, path, parameters) {
  const address = `${prometheus.replace(/\/+$/, "")}/api/v1/${path}?${new URLSearchParams(parameters)}`;
  const response = await fetch(address, { signal: AbortSignal.timeout(30_000) });
  // For a wrong expression Prometheus answers with JSON and status 400; an answer without JSON is not from Prometheus.
  const answer = await response.json().catch(() => fail(`HTTP ${response.status} without JSON`));
  return answer.status === "success" ? answer.data : fail(answer.error);
}

/** Asks for one expression and gives its series: a name and points [time, value]. */
async function query(context, panel, target) {
  const { prometheus, variables, rateInterval, start, end, step } = context;
  const expression = substitute(target.expr, variables, rateInterval);
  const data = panel.type === "stat"
    ? await ask(prometheus, "query", { query: expression, time: end })
    : await ask(prometheus, "query_range", { query: expression, start, end, step });
  return data.result.map((series) => ({
    refId: target.refId,
    name: legend(target.legendFormat, series.metric),
    points: (series.values ?? [series.value]).map(([time, value]) => [time, Number(value)]),
  }));
}

/** The legend of a series: {{label}} replaced, or all labels when nothing is said. */
function legend(format, labels) {
  const all = Object.entries(labels).map(([name, value]) => `${name}="${value}"`);
  return format ? format.replaceAll(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? "") : `{${all.join(", ")}}`;
}

/** NaN is what a quantile of nothing gives: a series is there, but there is nothing to see. */
const hasData = (series) => series.some(({ points }) => points.some(([, value]) => Number.isFinite(value)));

/** Whether a variable's label_values(metric, label) finds anything; Grafana would show an empty list. */
async function variableHasValues(context, variable) {
  const text = variable.query.query ?? variable.query;
  const [, selector, label] = /^label_values\((.+), *(\w+)\)$/.exec(text) ?? fail(`not understood: ${text}`);
  const match = substitute(selector, context.variables, context.rateInterval);
  const values = await ask(context.prometheus, `label/${label}/values`, { "match[]": match, start: context.start, end: context.end });
  return values.length > 0;
}

// ------------------------------------------------------------------------------------------------- numbers and units

/** Three digits that matter, without zeros at the end: 1.20 becomes 1.2. */
const short = (number) => String(Number(number.toPrecision(3)));

/** A number with the greatest of some steps that it reaches. */
function scaled(value, steps) {
  const [size, suffix] = steps.find(([size]) => Math.abs(value) >= size) ?? steps.at(-1);
  return `${short(value / size)}${suffix}`;
}

const THOUSANDS = [[1e9, " G"], [1e6, " M"], [1e3, " k"], [1, ""]];
const UNITS = {
  short: (value) => scaled(value, THOUSANDS),
  percentunit: (value) => `${short(value * 100)} %`,
  s: (value) => scaled(value, [[86_400, " d"], [3600, " h"], [60, " min"], [1, " s"], [1e-3, " ms"], [1e-6, " µs"]]),
  bytes: (value) => scaled(value, [[2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"], [1, " B"]]),
  mps: (value) => `${scaled(value, THOUSANDS)} msg/s`,
  reqps: (value) => `${scaled(value, THOUSANDS)} req/s`,
};

/** A value with its unit. Zero has no scale of its own, and "0 µs" would look odd. */
function withUnit(value, unit) {
  const format = UNITS[unit] ?? fail(`a unit that the preview does not know: ${unit}`);
  if (value === 0 && unit === "s") return "0 s";
  return format(value);
}

/** Distances between ticks that people can count in. */
function tickDistance(span, count, unit) {
  const rough = span / count;
  if (unit === "s" && rough > 1) {
    const nice = [2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400];
    return nice.find((distance) => distance >= rough) ?? Math.ceil(rough / 86_400) * 86_400;
  }
  const base = unit === "bytes" ? 1024 ** Math.floor(Math.log(Math.max(rough, 1)) / Math.log(1024)) : 1;
  const magnitude = 10 ** Math.floor(Math.log10(rough / base));
  return base * magnitude * [1, 2, 5, 10].find((factor) => factor * magnitude * base >= rough * 0.999_999);
}

/** The multiples of a distance within a range. */
function ticks(from, to, distance) {
  const first = Math.ceil(from / distance - 1e-9);
  const count = Math.floor(to / distance + 1e-9) - first + 1;
  // Rounded, because 3 × 0.1 is not 0.3.
  return Array.from({ length: count }, (_, index) => Number(((first + index) * distance).toPrecision(12)));
}

const clock = (time, withSeconds) => new Date(time * 1000).toTimeString().slice(0, withSeconds ? 8 : 5);

// ------------------------------------------------------------------------------------------------- drawing

const html = (text) => String(text).replaceAll(/[&<>"]/g, (sign) => `&#${sign.codePointAt(0)};`);

/** What an override sets for one series, for example the dashes of a limit. */
function overridden(panel, series, property) {
  const matching = panel.fieldConfig.overrides.filter(
    ({ matcher }) => matcher.id === "byFrameRefID" && matcher.options === series.refId,
  );
  return matching.flatMap(({ properties }) => properties).find(({ id }) => id === `custom.${property}`)?.value;
}

/** The points of a series in runs without a hole, because a line across a hole would be a claim. */
function runs(points, step) {
  const all = [];
  let previous = -Infinity;
  for (const [time, value] of points) {
    if (!Number.isFinite(value)) continue;
    if (time - previous > step * 1.5) all.push([]);
    all.at(-1).push([time, value]);
    previous = time;
  }
  return all;
}

/** The range of values of a graph: what the panel demands, else from the data with a little room above. */
function valueRange(panel, series) {
  const { min, max, unit } = panel.fieldConfig.defaults;
  const values = series.flatMap(({ points }) => points.map(([, value]) => value)).filter(Number.isFinite);
  const low = min ?? Math.min(...values);
  const highest = Math.max(...values, low);
  // A graph of zeros needs some height as well.
  const high = max ?? (highest > low ? highest : low + 1);
  const distance = tickDistance(high - low, 4, unit);
  return { low, high: max ?? Math.ceil(high / distance - 1e-9) * distance, distance };
}

/** One series as SVG paths: a line for each run and a faint area below it. */
function drawSeries(panel, series, colour, { x, y, bottom }, step) {
  const custom = panel.fieldConfig.defaults.custom;
  const stepped = custom.lineInterpolation === "stepAfter";
  const opacity = (overridden(panel, series, "fillOpacity") ?? custom.fillOpacity ?? 0) / 100;
  const dashes = overridden(panel, series, "lineStyle")?.dash.join(" ");
  return runs(series.points, step).map((run) => {
    const line = run.map(([time, value], index) => {
      const [px, py] = [x(time).toFixed(1), y(value).toFixed(1)];
      if (index === 0) return `M${px},${py}`;
      return stepped ? `H${px}V${py}` : `L${px},${py}`;
    }).join("");
    const area = `${line}V${bottom}H${x(run[0][0]).toFixed(1)}Z`;
    // A run of one point has no length; the round cap makes it a dot.
    return `<path d="${area}" fill="${colour}" fill-opacity="${opacity}"/>`
      + `<path d="${line}h0" fill="none" stroke="${colour}" stroke-width="1.5" stroke-linecap="round"`
      + `${dashes ? ` stroke-dasharray="${dashes}"` : ""}/>`;
  }).join("");
}

/** A time series panel: axes, dashed thresholds, lines, legend. */
function drawGraph(panel, series, { start, end, step }) {
  const { unit, thresholds, custom } = panel.fieldConfig.defaults;
  const width = panel.gridPos.w * (COLUMN_WIDTH + GAP) - GAP - 18;
  const height = panel.gridPos.h * (ROW_HEIGHT + GAP) - GAP - 78;
  const { low, high, distance } = valueRange(panel, series);
  const [left, top, right, bottom] = [76, 8, width - 4, height - 20];
  const x = (time) => left + ((time - start) / (end - start)) * (right - left);
  const y = (value) => bottom - ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (bottom - top);
  const across = ticks(low, high, distance).map((value) =>
    `<line x1="${left}" x2="${right}" y1="${y(value)}" y2="${y(value)}" class="grid"/>`
    + `<text x="${left - 6}" y="${y(value) + 4}" text-anchor="end">${html(withUnit(value, unit))}</text>`);
  const apart = tickDistance(end - start, width / 90, "s");
  const upright = ticks(start, end, apart).filter((time) => x(time) < right - 20).map((time) =>
    `<line x1="${x(time)}" x2="${x(time)}" y1="${top}" y2="${bottom}" class="grid"/>`
    + `<text x="${x(time)}" y="${bottom + 16}" text-anchor="middle">${clock(time, apart < 60)}</text>`);
  const limits = (custom.thresholdsStyle?.mode === "dashed" ? thresholds.steps : [])
    .filter(({ value }) => value !== null && value >= low && value <= high)
    .map(({ value, color }) => `<line x1="${left}" x2="${right}" y1="${y(value)}" y2="${y(value)}"`
      + ` stroke="${NAMED_COLOURS[color] ?? color}" stroke-dasharray="8 5"/>`);
  const colours = series.map((_, index) => PALETTE[index % PALETTE.length]);
  const lines = series.map((one, index) => drawSeries(panel, one, colours[index], { x, y, bottom }, step));
  const names = series.map(({ name }, index) => `<span><i style="background:${colours[index]}"></i>${html(name)}</span>`);
  return `<svg viewBox="0 0 ${width} ${height}" width="100%">${[...across, ...upright, ...limits, ...lines].join("")}</svg>`
    + `<div class="legend">${names.join("")}</div>`;
}

/** A stat panel: one big number for each series, in the colour of the threshold that it has reached. */
function drawStat(panel, series) {
  const { unit, thresholds, decimals } = panel.fieldConfig.defaults;
  const named = panel.options.textMode === "value_and_name";
  const numbers = series.map(({ name, points }) => {
    const value = points.at(-1)[1];
    const colour = thresholds.steps.findLast((step) => step.value === null || value >= step.value)?.color;
    const rounded = decimals === undefined || unit === "s" ? value : Number(value.toFixed(decimals + 2));
    return `<div>${named ? `<small>${html(name)}</small>` : ""}`
      + `<b style="color:${NAMED_COLOURS[colour] ?? colour}">${html(withUnit(rounded, unit))}</b></div>`;
  });
  return `<div class="stat${series.length > 1 ? " several" : ""}">${numbers.join("")}</div>`;
}

/** A panel at its place in the grid. */
function drawPanel(panel, series, context) {
  const { x, y, w, h } = panel.gridPos;
  const place = `grid-column:${x + 1}/span ${w};grid-row:${y + 1}/span ${h}`;
  if (panel.type === "row") return `<h2 style="${place}">${html(panel.title)}</h2>`;
  const draw = { stat: drawStat, timeseries: drawGraph }[panel.type] ?? fail(`a panel type that the preview does not know: ${panel.type}`);
  const inside = hasData(series) ? draw(panel, series, context) : `<div class="nothing">No data</div>`;
  return `<section style="${place}" title="${html(panel.description)}"><h3>${html(panel.title)}</h3>${inside}</section>`;
}

/** The whole page; it loads nothing, so that it can be kept and photographed. */
function drawPage(dashboard, panels, context) {
  const notice = "Preview drawn from Prometheus without Grafana";
  // The script that photographs the page has to know its height.
  const rows = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const height = rows * (ROW_HEIGHT + GAP) + 70;
  const span = `${clock(context.start, true)} to ${clock(context.end, true)}, rates over ${context.rateInterval}`;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${html(dashboard.title)} (${notice})</title><style>
body { margin: 0; background: #f4f5f5; color: #24292e; font: 13px/1.3 system-ui, "DejaVu Sans", sans-serif; }
header { width: ${PAGE_WIDTH - 2 * MARGIN}px; margin: 12px auto; display: flex; align-items: baseline; gap: 16px; }
h1 { margin: 0; font-size: 20px; font-weight: 600; } header p { margin: 0; color: #5a6069; }
main { width: ${PAGE_WIDTH - 2 * MARGIN}px; margin: 0 auto 16px; display: grid; gap: ${GAP}px;
  grid-template-columns: repeat(${COLUMNS}, minmax(0, 1fr)); grid-auto-rows: ${ROW_HEIGHT}px; }
h2 { margin: 0; align-self: center; font-size: 15px; font-weight: 600; }
section { overflow: hidden; padding: 6px 8px; background: #fff; border: 1px solid #dcdfe3; border-radius: 2px; }
h3 { margin: 0 0 4px; font-size: 13px; font-weight: 600; }
svg { display: block; } svg text { font-size: 11px; fill: #5a6069; } .grid { stroke: #e6e8ea; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; max-height: 34px; overflow: hidden; font-size: 11px; }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }
.stat { height: calc(100% - 22px); display: flex; gap: 8px 24px; flex-wrap: wrap; align-items: center; align-content: center; justify-content: center; }
.stat b { font-size: 34px; font-weight: 600; } .stat.several b { font-size: 24px; }
.stat small { display: block; color: #5a6069; font-size: 12px; }
.nothing { height: 70%; display: grid; place-items: center; color: #8a9099; }
</style></head><body data-height="${height}">
<header><h1>${html(dashboard.title)}</h1><p>${notice}: ${html(span)}, ${new Date(context.end * 1000).toISOString().slice(0, 10)}</p></header>
<main>
${panels.join("\n")}
</main></body></html>
`;
}

// ------------------------------------------------------------------------------------------------- the run

function fail(message) {
  throw new Error(message);
}

/** Runs one check, prints what became of it and gives its result; the page can be drawn without it. */
async function report(context, where, what, check, isThere, otherwise) {
  let [verdict, result, why] = ["ok", otherwise, ""];
  try {
    result = await check();
    if (!isThere(result)) verdict = "no data";
  } catch (error) {
    [verdict, why] = ["error", `  (${error.cause?.message ?? error.message})`];
  }
  const line = `${verdict.padEnd(7)}  ${where}  ${what}${why}`;
  context.verdicts.push({ verdict, line });
  console.log(line);
  return result;
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { "rate-interval": { type: "string", default: "30s" }, range: { type: "string" } },
  });
  if (positionals.length !== 3) fail("usage: preview.mjs PROMETHEUS_URL DASHBOARD_JSON OUTPUT_HTML [--rate-interval=30s] [--range=1h]");
  const [prometheus, path, output] = positionals;
  const dashboard = JSON.parse(readFileSync(path, "utf8"));
  const range = seconds(values.range ?? dashboard.time.from.replace(/^now-/, ""));
  const end = Math.floor(Date.now() / 1000);
  const listed = dashboard.templating.list.filter(({ type }) => type === "query");
  const context = {
    prometheus, end, start: end - range, step: Math.max(1, Math.round(range / 240)),
    rateInterval: values["rate-interval"], variables: listed.map(({ name }) => name), verdicts: [],
  };
  seconds(context.rateInterval);

  for (const variable of listed) {
    const what = variable.query.query ?? variable.query;
    await report(context, `variable ${variable.name}`, what, () => variableHasValues(context, variable), Boolean, false);
  }
  const panels = [];
  for (const panel of dashboard.panels) {
    const series = [];
    for (const target of panel.targets ?? []) {
      series.push(...await report(context, panel.title, target.expr, () => query(context, panel, target), hasData, []));
    }
    panels.push(drawPanel(panel, series, context));
  }
  writeFileSync(output, drawPage(dashboard, panels, context));
  const bad = context.verdicts.filter(({ verdict }) => verdict !== "ok");
  // Once more at the end, where whoever reads a long log looks.
  bad.forEach(({ line }) => console.log(line));
  console.log(`${context.verdicts.length} asked, ${bad.length} without an answer to draw; ${output}`);
  process.exitCode = bad.length > 0 || context.verdicts.length === 0 ? 1 : 0;
}

await main().catch((error) => {
  console.error(`preview: ${error.message}`);
  process.exitCode = 2;
});
