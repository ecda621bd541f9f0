// Prints the parts of an image's configuration as shell variables, from `buildah inspect` on standard input.
//
//   buildah inspect --type image NAME | node config.mjs
//
// `entrypoint`, `command` and `health` are shell words (for `eval "set -- $entrypoint"`); `environment` has a K=V a line.

import { readFileSync } from "node:fs";

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
const words = (list) => (list ?? []).map(quoted).join(" ");

const { config } = JSON.parse(readFileSync(0, "utf8")).Docker;
const [kind, ...health] = config.Healthcheck?.Test ?? [];
const shown = {
    entrypoint: words(config.Entrypoint),
    command: words(config.Cmd),
    // A health check through a shell could not run: there is none in the image.
    health: kind === "CMD" ? words(health) : "",
    user: config.User ?? "",
    folder: config.WorkingDir || "/",
    environment: (config.Env ?? []).join("\n"),
    labels: Object.entries(config.Labels ?? {}).map(([name, value]) => `${name}=${value}`).join("\n"),
};
for (const [name, value] of Object.entries(shown)) console.log(`image_${name}=${quoted(value)}`);
