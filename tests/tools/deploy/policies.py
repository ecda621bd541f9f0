"""Checks the IAM policies of deploy/aws with parliament, and that the template and iam-policy.json allow the same.

    policies.py TEMPLATE POLICY

In the template, references are replaced by the ARNs that they would be. It prints each fault.
"""

import json
import sys
from pathlib import Path

import parliament
import yaml

REGION, ACCOUNT = "eu-west-1", "123456789012"
ARNS = {
    "Tickets.Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:tickets.fifo",
    "Audit.Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:audit",
    "QueueKey": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000",
    "OwnerDatabaseSecret": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:owner-AbCdEf",
    "RelayDatabaseSecret": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:relay-AbCdEf",
}


class Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms."""


def short_form(loader, suffix, node):
    value = {
        yaml.ScalarNode: loader.construct_scalar,
        yaml.SequenceNode: loader.construct_sequence,
        yaml.MappingNode: loader.construct_mapping,
    }[type(node)](node)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


Loader.add_multi_constructor("!", short_form)


def resolved(value):
    """The value as it would be deployed with a key for the queues."""
    if isinstance(value, list):
        return [resolved(part) for part in value if part != {"Ref": "AWS::NoValue"}]
    if not isinstance(value, dict):
        return value
    match value:
        case {"Ref": name}:
            return ARNS[name]
        case {"Fn::GetAtt": name}:
            return ARNS[name]
        case {"Fn::Sub": text}:
            return text.replace("${AWS::Region}", REGION).replace("${AWS::AccountId}", ACCOUNT)
        case {"Fn::If": [_, then, _]}:
            return resolved(then)
    return {key: resolved(part) for key, part in value.items()}


def parts(policy):
    """What a policy says, in a form that can be compared: names of resources differ, and are left out."""
    said = {}
    for statement in policy["Statement"]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        condition = {test: sorted(keys) for test, keys in statement.get("Condition", {}).items()}
        said[statement["Sid"]] = (statement["Effect"], sorted(actions), condition)
    return said


def main():
    template, alone = Path(sys.argv[1]), Path(sys.argv[2])
    policies = {str(alone): json.loads(alone.read_text())}
    resources = yaml.load(template.read_text(), Loader)["Resources"]
    for name, resource in resources.items():
        for policy in resource.get("Properties", {}).get("Policies", []):
            policies[f"{template} {name} {policy['PolicyName']}"] = resolved(policy["PolicyDocument"])
    faults = []
    for name, policy in policies.items():
        for finding in parliament.analyze_policy_string(json.dumps(policy)).findings:
            faults.append(f"{name}: {finding}")
    of_task = f"{template} TaskRole outbox-relay"
    if of_task not in policies:
        faults.append(f"{template}: TaskRole has no policy called outbox-relay")
    elif parts(policies[of_task]) != parts(policies[str(alone)]):
        faults.append(f"{of_task} allows {parts(policies[of_task])}, but {alone} {parts(policies[str(alone)])}")
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
