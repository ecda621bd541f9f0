"""Checks what has to be the same in several files of deploy/, and the chart's README against its values.

    consistency.py        in the repository's folder

It prints each fault.
"""

import json
import re
import sys
from pathlib import Path

import yaml

from policies import Loader

CHART = Path("deploy/helm/outbox-relay")
# From SIGTERM to exit the relay takes OUTBOX_RELAY_DRAIN_TIMEOUT and up to a second to close its connections.
CLOSING = 1


def seconds(text):
    amount, unit = re.fullmatch(r"(\d+)(s|m|min)?", str(text)).groups()
    return int(amount) * (60 if unit in ("m", "min") else 1)


def versions():
    """The chart and the workflows follow Cargo.toml and the Dockerfile."""
    program = re.search(r'^\[package\].*?^version = "(.+?)"', Path("Cargo.toml").read_text(), re.M | re.S).group(1)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for key in ("version", "appVersion"):
        if chart[key] != program:
            yield f"{CHART}/Chart.yaml: {key} is {chart[key]}, but Cargo.toml has {program}"
    rust = re.search(r"\brust:(\d+\.\d+)", Path("Dockerfile").read_text()).group(1)
    for file in sorted(Path(".github/workflows").glob("*.yml")):
        for found in re.findall(r'RUST: "(.+?)"|\brust:(\d+\.\d+)', file.read_text()):
            if "".join(found) != rust:
                yield f"{file}: Rust {''.join(found)}, but the Dockerfile has {rust}"


def drains():
    """Whatever stops a relay waits longer than the relay takes."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    task = yaml.load(Path("deploy/aws/ecs-fargate.yaml").read_text(), Loader)["Resources"]["Task"]["Properties"]
    relay = next(one for one in task["ContainerDefinitions"] if one["Name"] == "outbox-relay")
    set_there = {one["Name"]: one["Value"] for one in relay["Environment"]}
    default = re.search(r"#OUTBOX_RELAY_DRAIN_TIMEOUT=(.+)", Path(".env.example").read_text()).group(1)
    unit = Path("deploy/systemd/outbox-relay.service").read_text()
    pod = list(yaml.safe_load_all(Path("deploy/kubernetes/sidecar.yaml").read_text()))[1]["spec"]["template"]["spec"]
    sidecar = next(one for one in pod["initContainers"] if one["name"] == "outbox-relay")
    in_pod = next(one["value"] for one in sidecar["env"] if one["name"] == "OUTBOX_RELAY_DRAIN_TIMEOUT")
    compose = yaml.safe_load(Path("deploy/compose.yaml").read_text())["services"]["relay"]
    grace = "terminationGracePeriodSeconds"
    for where, drain, wait in (
        (f"values.yaml: {grace}", values["drainTimeoutSeconds"], values[grace]),
        ("ecs-fargate.yaml: StopTimeout", set_there["OUTBOX_RELAY_DRAIN_TIMEOUT"], relay["StopTimeout"]),
        ("outbox-relay.service: TimeoutStopSec", default, re.search(r"^TimeoutStopSec=(.+)$", unit, re.M).group(1)),
        (f"sidecar.yaml: {grace}", in_pod, pod[grace]),
        ("compose.yaml: stop_grace_period", default, compose["stop_grace_period"]),
    ):
        if seconds(wait) <= seconds(drain) + CLOSING:
            yield f"{where} is {wait}, too short to drain for {drain} and close"


def names():
    """Every variable of the relay that a file names is one of .env.example."""
    known = set(re.findall(r"\bOUTBOX_RELAY_[A-Z_]+\b", Path(".env.example").read_text()))
    for file in sorted(Path("deploy").rglob("*")):
        if file.suffix in (".yaml", ".yml", ".service", ".tpl", ".md", ".txt", ".conf"):
            for name in sorted(set(re.findall(r"\bOUTBOX_RELAY_[A-Z_]*[A-Z]\b", file.read_text())) - known):
                yield f"{file}: {name} is not in .env.example"


def leaves(schema, values, path=""):
    """Each value that can be set, and its default."""
    for key, part in schema["properties"].items():
        name = f"{path}{key}"
        if name == "global":
            continue
        if part.get("additionalProperties") is False and "properties" in part:
            yield from leaves(part, values.get(key, {}), f"{name}.")
        else:
            yield name, values.get(key, "missing in values.yaml")


def unknown(schema, values, path=""):
    """Values of values.yaml that the schema does not have."""
    for key, value in values.items():
        part = schema["properties"].get(key)
        if part is None:
            yield f"{path}{key}"
        elif part.get("additionalProperties") is False and "properties" in part:
            yield from unknown(part, value, f"{path}{key}.")


def chart():
    """Schema, values and README of the chart name the same keys, and README has the defaults."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (CHART / "README.md").read_text(), re.M))
    for name in unknown(schema, values):
        yield f"{CHART}/values.yaml: {name} is not in values.schema.json"
    defaults = dict(leaves(schema, values))
    for name, default in defaults.items():
        if default == "missing in values.yaml":
            yield f"{CHART}/values.schema.json: {name} is not in values.yaml"
        elif name not in rows:
            yield f"{CHART}/README.md: {name} has no row"
        elif rows[name] not in (json.dumps(default), "see values.yaml"):
            yield f"{CHART}/README.md: the default of {name} is {rows[name]}, but values.yaml has {json.dumps(default)}"
    for name in rows.keys() - defaults.keys():
        yield f"{CHART}/README.md: {name} is no value of the chart"


def targets():
    """Targets of make that documents, workflows and files in deploy/ name exist, and folders that dependabot looks into."""
    known = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.M))
    files = [*Path(".").glob("*.md"), *Path("docs").rglob("*.md"), *Path("deploy").rglob("*.*"), *Path(".github").rglob("*.yml")]
    for file in files:
        if not file.is_file() or file.suffix in {".png", ".json"}:
            continue
        named = re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)", file.read_text())
        if file.parts[0] == ".github":
            named += re.findall(r"^\s*(?:- )?(?:run: )?make ([a-z][a-z-]*)", file.read_text(), re.M)
        for target in sorted(set(named) - known):
            yield f"{file}: there is no make {target}"
    for entry in yaml.safe_load(Path(".github/dependabot.yml").read_text())["updates"]:
        if not Path("." + entry["directory"]).is_dir():
            yield f".github/dependabot.yml: there is no {entry['directory']}"


def main():
    faults = [fault for check in (versions, drains, names, chart, targets) for fault in check()]
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
