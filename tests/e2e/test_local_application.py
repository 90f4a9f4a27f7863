"""template.yaml, translated and created: what the functions get, and what a broken one is told."""

import json
from pathlib import Path

import pytest
from local import application, aws, ports
from local.children import Children
from local.credentials import Credentials
from local.refusal import Refusal
from tests.e2e.local_cloud import TOYS, Toys


def test_every_kind_of_reference_is_resolved(toys: Toys) -> None:
    variables = toys.function.environment

    assert variables["STAGE"] == "local"
    assert variables["NUMBER"] == "7"
    assert variables["CHOSEN"] == "here"
    assert variables["ORIGINS"] == "https://a.example,https://b.example"
    assert variables["QUEUE_ARN"].startswith("arn:aws:sqs:")
    assert "/123456789012/" in variables["QUEUE_URL"]
    assert variables["API_ID"] == "id of api"


def test_a_function_has_the_templates_timeout_memory_layers_and_log_format(toys: Toys) -> None:
    function = toys.function

    assert (function.timeout, function.memory, function.log_format) == (2, 256, "JSON")
    assert function.layers == (TOYS.parent / "layers" / "shared",)
    assert function.folder == "toy"


def test_a_generated_secret_is_readable_and_the_same_in_the_next_run(toys: Toys, tmp_path: Path) -> None:
    arn = toys.function.environment["PASSWORD_ARN"]
    stored = json.loads(toys.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"])
    again = Credentials(toys.logs / "secrets.json")

    assert stored["username"] == "toy"
    assert len(stored["password"]) == 40
    assert stored["password"].isalnum()
    assert json.loads(again.secret_string("Password", {})) == stored
    assert (toys.logs / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert Credentials(tmp_path / "other").secret_string("Password", {}) != again.secret_string(
        "Password", {}
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("!Ref Queue", "!Ref Nowhere"), "refers to Nowhere"),
        (("!GetAtt Queue.Arn", "!GetAtt Nowhere.Arn"), "refers to Nowhere"),
        (('!Sub "id of ${Api}"', '!Sub "id of ${Nowhere}"'), "refers to Nowhere"),
        (("MemorySize:", "MemorySise:"), "is not valid SAM"),
    ],
)
def test_a_broken_template_is_refused_with_its_cause(
    toys: Toys, tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    text = TOYS.read_text()
    assert change[0] in text
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace(*change, 1))

    with pytest.raises(Refusal, match=told):
        application.create(broken, {"Stage": "local"}, toys.client, Credentials(tmp_path / "secrets.json"))


def test_an_attribute_that_does_not_exist_is_refused_with_its_cause(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(TOYS.read_text().replace("!GetAtt Queue.Arn", "!GetAtt Queue.Colour"))
    children = Children(tmp_path / "processes")
    try:
        client = aws.clients(aws.start(children, ports.listen(0), tmp_path / "aws.log"))
        with pytest.raises(Refusal, match="Queue does not support attribute type Colour"):
            application.create(broken, {"Stage": "local"}, client, Credentials(tmp_path / "secrets.json"))
    finally:
        children.close()
