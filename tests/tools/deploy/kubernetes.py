"""Checks Kubernetes manifests against the schemas of a Kubernetes release: unknown fields are faults, too.

    kubernetes.py VERSION CRD FILE...        VERSION is oldest:1.29, newest, or a release such as 1.34

`oldest:1.29` is the oldest release that kubernetes-validate knows, from 1.29 on. A PodMonitor is checked against CRD,
its CustomResourceDefinition. It prints each fault, and as its last line what was checked.
"""

import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate.utils import SchemaNotFoundError, ValidationError


def releases():
    """The releases that kubernetes-validate knows, as (1, 29)."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    names = [path.name for path in folder.iterdir() if path.name.endswith("-local-strict")]
    return sorted(tuple(int(part) for part in name[1:].split(".")[:2]) for name in names)


def chosen(version):
    known = releases()
    if version == "newest":
        return "{}.{}".format(*known[-1])
    if version.startswith("oldest:"):
        floor = tuple(int(part) for part in version.removeprefix("oldest:").split("."))
        return "{}.{}".format(*next(one for one in known if one >= floor))
    return version


def closed(schema):
    """The schema with unknown fields forbidden, unless it says that it keeps them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(part) for key, part in schema.items()}
    opened = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not opened:
        inner["additionalProperties"] = False
    return inner


def definition(file):
    crd = yaml.safe_load(Path(file).read_text())
    kind, group = crd["spec"]["names"]["kind"], crd["spec"]["group"]
    found = {}
    for version in crd["spec"]["versions"]:
        schema = closed(version["schema"]["openAPIV3Schema"])
        # Described as an object only; every kind has the same.
        schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        found[f"{group}/{version['name']}", kind] = jsonschema.Draft7Validator(schema)
    return found


def faults_of(document, version, own):
    kind = document.get("apiVersion"), document.get("kind")
    if kind in own:
        for error in own[kind].iter_errors(document):
            yield f"{error.json_path}: {error.message}"
        return
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    except SchemaNotFoundError as error:
        yield error.message


def main():
    version, crd, *files = sys.argv[1:]
    version, own = chosen(version), definition(crd)
    faults, kinds = 0, []
    for file in files:
        documents = [document for document in yaml.safe_load_all(Path(file).read_text()) if document]
        if not documents:
            print(f"{file}: holds nothing")
            faults += 1
        for document in documents:
            name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
            kinds.append(str(document.get("kind")))
            for fault in faults_of(document, version, own):
                print(f"{file}: {name}: {fault}")
                faults += 1
    print(f"Kubernetes {version}: {', '.join(sorted(set(kinds)))}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
