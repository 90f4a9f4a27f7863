"""template.yaml as the local cloud sees it: translated by SAM, created by moto's CloudFormation.

CloudFormation resolves the references, so a broken one breaks here first. Code stays where it is:
each CodeUri becomes the key of an object in a bucket that doesn't exist, and so finds back to its
folder.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.public.exceptions import InvalidDocumentException
from samtranslator.translator.translator import Translator
from yaml import YAMLError

from local import async_invoke, deliveries, http_api, intrinsics
from local.aws import REGION, STACK_NAME, Client
from local.credentials import Credentials
from local.function import Function
from local.intrinsics import Resource
from local.refusal import Refusal

BUCKET = "code-in-this-checkout"

# moto's CloudFormation makes none of these. The gateway is ours, and so is the making of secrets;
# what else refers to one finds a parameter of its name instead.
GATEWAY = ("AWS::ApiGatewayV2::Api", "AWS::ApiGatewayV2::Stage")
SECRET = "AWS::SecretsManager::Secret"
# Nor these, which are ours to play; moto would look for Docker to run a mapping's function.
UNSUPPORTED = ("AWS::Scheduler::", "AWS::Lambda::EventSourceMapping")

_IN_TEXT = re.compile(r"\$\{(?!!|AWS::)([^.}]+)")  # `${Name}` and `${Name.Attribute}`, not `${!literal}`

# It warns that nobody published its metrics, which are about SAM's own use.
logging.getLogger("samtranslator.metrics").setLevel(logging.ERROR)

Template = dict[str, Any]


@dataclass(frozen=True)
class Application:
    functions: list[Function]
    api: http_api.HttpApi
    triggers: list[Resource]  # of queues, the bus and the clock, and asynchronous invocation's settings


def translate(path: Path, parameters: Mapping[str, str]) -> Template:
    """The CloudFormation template. Raises Refusal."""
    import boto3  # late, as in local.aws

    try:
        template: Template = yaml_parse(path.read_text())
    except YAMLError as error:
        raise Refusal(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(template, dict) or "Resources" not in template:
        raise Refusal(f"{path.name} is no template: it has no Resources.")
    for properties in (
        *template.get("Globals", {}).values(),
        *(resource.get("Properties", {}) for resource in template["Resources"].values()),
    ):
        for name in {"CodeUri", "ContentUri"} & properties.keys():
            properties[name] = f"s3://{BUCKET}/{properties[name]}"
    translator = Translator(
        managed_policy_map=None,
        sam_parser=Parser(),
        plugins=[],
        boto_session=boto3.Session(region_name=REGION),
    )
    try:
        translated: Template = translator.translate(template, _declared(template, parameters))
    except InvalidDocumentException as error:
        causes = "; ".join(cause.message for cause in error.causes)
        raise Refusal(f"{path.name} is not valid SAM: {causes}. `make lint` says where.") from None
    return translated


def create(
    path: Path,
    parameters: Mapping[str, str],
    client: Client,
    credentials: Credentials,
    *,
    changed: bool = False,
) -> Application:
    """Create the template's resources and say what its functions and routes are. Raises Refusal.

    `changed`: they were created before, and what the template now says otherwise is brought about.
    """
    template = translate(path, parameters)
    if nowhere := sorted(set(_references(template)) - _names(template)):
        raise Refusal(f"{path.name} refers to {', '.join(nowhere)}, which it does not have.")
    # With the defaults spelt out: moto makes a list of what it is given only.
    values = _defaults(template) | _declared(template, parameters)
    api = http_api.read(template)
    _name_buckets(template)
    _spell_out(template)
    asked = intrinsics.ask(template, (*deliveries.KINDS, async_invoke.KIND))
    values |= _adopt(template, client, credentials)
    physical = _create_stack(path, template, values, client, changed=changed)
    return Application(
        functions=[
            _function(path.parent, template, logical_id, physical, client)
            for logical_id, resource in template["Resources"].items()
            if resource["Type"] == "AWS::Lambda::Function"
        ],
        api=api,
        triggers=intrinsics.answers(asked, client),
    )


def _declared(template: Template, values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name in template.get("Parameters", {})}


def _defaults(template: Template) -> dict[str, str]:
    declared = template.get("Parameters", {}).items()
    return {name: str(each["Default"]) for name, each in declared if "Default" in each}


def _names(template: Template) -> set[str]:
    return {*template["Resources"], *template.get("Parameters", {})}


def _references(node: Any) -> Iterator[str]:
    """What Ref, GetAtt and Sub name anywhere in the template, but for AWS's own."""
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "Ref":
            yield from () if value.startswith("AWS::") else (value,)
        elif key == "Fn::GetAtt":
            yield value.partition(".")[0] if isinstance(value, str) else value[0]
        elif key == "Fn::Sub":
            text, given = (value, {}) if isinstance(value, str) else value
            yield from set(_IN_TEXT.findall(text)) - given.keys()
            yield from _references(given)
        else:
            yield from _references(value)


def _name_buckets(template: Template) -> None:
    """The same in every run, so that what is in them comes back."""
    for logical_id, resource in template["Resources"].items():
        if resource["Type"] == "AWS::S3::Bucket":
            name = f"{STACK_NAME}-{logical_id}".lower()[:63]
            resource.setdefault("Properties", {}).setdefault("BucketName", name)


def _spell_out(template: Template) -> None:
    """A function's defaults: where a template no longer says something, moto keeps what it said before."""
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Lambda::Function":
            properties = resource["Properties"]
            properties.setdefault("Timeout", 3)
            properties.setdefault("MemorySize", 128)
            properties.setdefault("Environment", {}).setdefault("Variables", {})


def _adopt(template: Template, client: Client, credentials: Credentials) -> dict[str, str]:
    """Take out what moto can't make, put parameters in its place; their values."""
    values = {}
    resources: Template = template["Resources"]
    for name, resource in list(resources.items()):
        kind = resource["Type"]
        if kind == SECRET:
            text = credentials.secret_string(name, resource["Properties"])
            values[name] = put_secret(client, name, text)
        elif kind in GATEWAY or kind.startswith(UNSUPPORTED):
            values[name] = name.lower()
        elif kind != "AWS::Lambda::Permission":  # who may invoke is not enforced here
            continue
        del resources[name]
    template.setdefault("Parameters", {}).update({name: {"Type": "String"} for name in values})
    return values


def put_secret(client: Client, name: str, text: str) -> str:
    """Its ARN. A secret that is there stays as it is."""
    secrets = client("secretsmanager")
    try:
        secret = secrets.create_secret(Name=f"{STACK_NAME}/{name}", SecretString=text)
    except secrets.exceptions.ResourceExistsException:
        secret = secrets.describe_secret(SecretId=f"{STACK_NAME}/{name}")
    arn: str = secret["ARN"]
    return arn


def _without_layers(template: Template) -> Template:
    """Functions without their layers, which are folders here and an exception in moto's updates."""
    resources = {}
    for name, resource in template["Resources"].items():
        properties = {key: value for key, value in resource.get("Properties", {}).items() if key != "Layers"}
        is_function = resource["Type"] == "AWS::Lambda::Function"
        resources[name] = {**resource, "Properties": properties} if is_function else resource
    return {**template, "Resources": resources}


def _create_stack(
    path: Path, template: Template, values: Mapping[str, str], client: Client, *, changed: bool
) -> dict[str, str]:
    """Physical ids by logical ones."""
    cloudformation = client("cloudformation")
    bring_about = cloudformation.update_stack if changed else cloudformation.create_stack
    parameters = [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()]
    try:
        try:
            bring_about(
                StackName=STACK_NAME,
                TemplateBody=json.dumps(_without_layers(template)),
                Parameters=parameters,
                Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
            )
        except ClientError as error:
            if "No updates are to be performed" not in str(error):
                raise
        resources = cloudformation.describe_stack_resources(StackName=STACK_NAME)["StackResources"]
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        raise Refusal(f"{path.name} can't be {'updated' if changed else 'created'}: {error}") from None
    # What moto can't make has no name here, such as a queue's policy.
    named = [each for each in resources if "LogicalResourceId" in each]
    return {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in named}


def _function(
    root: Path, template: Template, logical_id: str, physical: Mapping[str, str], client: Client
) -> Function:
    properties = template["Resources"][logical_id]["Properties"]
    resolved = client("lambda").get_function_configuration(FunctionName=physical[logical_id])
    code = root / properties["Code"]["S3Key"]
    if not code.is_dir():
        raise Refusal(f"{logical_id}'s CodeUri {code.relative_to(root)} is not a folder.")
    return Function(
        name=resolved["FunctionName"],
        logical_id=logical_id,
        code=code,
        handler=resolved["Handler"],
        timeout=resolved["Timeout"],
        memory=resolved["MemorySize"],
        runtime=resolved["Runtime"],
        layers=tuple(_layer(root, template, each["Ref"]) for each in properties.get("Layers", ())),
        environment=_variables(resolved.get("Environment", {}).get("Variables", {})),
        log_format=properties.get("LoggingConfig", {}).get("LogFormat", "Text"),
    )


def _variables(resolved: Mapping[str, Any]) -> dict[str, str]:
    """As strings, which AWS makes of them: moto leaves a Number parameter a number."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in resolved.items()}


def _layer(root: Path, template: Template, logical_id: str) -> Path:
    """What the layer puts on the path: its folder, which `sam build` moves under `python/`."""
    folder = root / str(template["Resources"][logical_id]["Properties"]["Content"]["S3Key"])
    return folder / "python" if (folder / "python").is_dir() else folder
