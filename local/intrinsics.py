"""What the template says of resources that are ours to play, with its references resolved.

CloudFormation resolves them in the outputs that we add: a resource's properties as one JSON text.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from local.aws import STACK_NAME, Client

PREFIX = "LocalPropertiesOf"


@dataclass(frozen=True)
class Resource:
    logical_id: str
    kind: str  # as AWS::Events::Rule
    properties: dict[str, Any]


def ask(template: dict[str, Any], kinds: Iterable[str]) -> dict[str, str]:
    """Add an output for each resource of these kinds; their kinds by logical id."""
    asked = {
        name: resource["Type"]
        for name, resource in template["Resources"].items()
        if resource["Type"] in kinds
    }
    outputs = template.setdefault("Outputs", {})
    for name in asked:
        resource = template["Resources"][name]
        value: Any = {"Fn::ToJsonString": resource.get("Properties", {})}
        if condition := resource.get("Condition"):
            value = {"Fn::If": [condition, value, "null"]}
        outputs[PREFIX + name] = {"Value": value}
    return asked


def answers(asked: dict[str, str], client: Client) -> list[Resource]:
    """Those resources, without the ones whose condition is false."""
    stack = client("cloudformation").describe_stacks(StackName=STACK_NAME)["Stacks"][0]
    values = {each["OutputKey"]: each.get("OutputValue", "null") for each in stack.get("Outputs", [])}
    found = [(name, kind, json.loads(values[PREFIX + name])) for name, kind in asked.items()]
    return [Resource(name, kind, properties) for name, kind, properties in found if properties is not None]
