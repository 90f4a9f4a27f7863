"""S3 objects, KMS keys and the secrets that functions make outlive moto's process, however it ends."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from local import application, aws, ports, state
from local.children import Children
from local.credentials import Credentials
from local.state import State
from tests.e2e.local_cloud import until

pytestmark = pytest.mark.xdist_group("deliveries")

TEMPLATE = Path(__file__).parent / "toys" / "state.yaml"
UPLOADS = f"{aws.STACK_NAME}-uploads"  # has versions
SCRATCH = f"{aws.STACK_NAME}-scratch"


@contextmanager
def run(folder: Path, *, stopped: bool = True) -> Iterator[aws.Client]:
    """The local AWS with the toys' resources; at the end it is stopped, or killed."""
    with ExitStack() as cleanup:
        children = Children(folder / "processes")
        cleanup.callback(children.close)
        url = aws.start(
            children,
            ports.listen(0),
            folder / "aws.log",
            state=folder / "aws",
            cleanup=cleanup if stopped else None,
        )
        client = aws.clients(url)
        application.create(TEMPLATE, {}, client, Credentials(folder / "secrets.json"))
        yield client


def saved(folder: Path, name: str) -> Any:
    """Whether an object of this name is in the saved state."""
    return any(each["name"] == name for each in State(folder / "aws").load().objects)


def key_id(client: aws.Client) -> str:
    return str(client("kms").describe_key(KeyId="alias/toys")["KeyMetadata"]["KeyId"])


def read(client: aws.Client, bucket: str, key: str, **which: str) -> bytes:
    body: bytes = client("s3").get_object(Bucket=bucket, Key=key, **which)["Body"].read()
    return body


@dataclass(frozen=True)
class Restarted:
    """What was put into the first run, and the AWS of the second."""

    client: aws.Client
    etags: dict[str, str]
    versions: list[str]
    keys: list[str]
    ciphertexts: list[bytes]


PARTS = [bytes([number]) * (5 * 1024 * 1024) for number in (1, 2)] + [b"end"]
CONTEXT = {"of": "ada"}
PRIVATE_KEY, DELETED = (f"{aws.STACK_NAME}/integrations/{name}" for name in ("kept", "deleted"))


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    folder = tmp_path_factory.mktemp("state")
    with run(folder) as client:
        etags = {"a/ö.txt": _put_described(client), "big": _put_in_parts(client)}
        versions = _put_versions(client)
        keys, ciphertexts = _encrypt(client)
        for name in (PRIVATE_KEY, DELETED):
            client("secretsmanager").create_secret(Name=name, SecretString="a key")
        client("secretsmanager").delete_secret(SecretId=DELETED, ForceDeleteWithoutRecovery=True)
    with run(folder):
        pass  # nothing changed, nothing lost
    with run(folder) as client:
        yield Restarted(client, etags, versions, keys, ciphertexts)


def _put_described(client: aws.Client) -> str:
    put = client("s3").put_object(
        Bucket=SCRATCH,
        Key="a/ö.txt",
        Body=b"content",
        ContentType="text/plain",
        Metadata={"owner": "ada"},
        Tagging="colour=red",
        CacheControl="no-store",
    )
    return str(put["ETag"])


def _put_in_parts(client: aws.Client) -> str:
    s3 = client("s3")
    upload = s3.create_multipart_upload(Bucket=SCRATCH, Key="big")["UploadId"]
    which = {"Bucket": SCRATCH, "Key": "big", "UploadId": upload}
    sent = [
        {"PartNumber": n, "ETag": s3.upload_part(**which, PartNumber=n, Body=part)["ETag"]}
        for n, part in enumerate(PARTS, 1)
    ]
    return str(s3.complete_multipart_upload(**which, MultipartUpload={"Parts": sent})["ETag"])


def _put_versions(client: aws.Client) -> list[str]:
    s3 = client("s3")
    versions = [s3.put_object(Bucket=UPLOADS, Key="a", Body=body)["VersionId"] for body in (b"1", b"2")]
    s3.put_object(Bucket=UPLOADS, Key="b", Body=b"kept")
    s3.delete_object(Bucket=UPLOADS, Key="a")
    return versions


def _encrypt(client: aws.Client) -> tuple[list[str], list[bytes]]:
    """With the template's key and with one of a caller's own."""
    kms = client("kms")
    mine = kms.create_key(Description="by a caller")["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/mine", TargetKeyId=mine)
    keys = [key_id(client), mine]
    texts = [kms.encrypt(KeyId=each, Plaintext=b"secret", EncryptionContext=CONTEXT) for each in keys]
    return keys, [each["CiphertextBlob"] for each in texts]


def test_an_object_comes_back_with_all_that_was_told_of_it(restarted: Restarted) -> None:
    s3 = restarted.client("s3")
    found = s3.get_object(Bucket=SCRATCH, Key="a/ö.txt")
    listed = s3.list_objects_v2(Bucket=SCRATCH, Prefix="a/")["Contents"]

    assert found["Body"].read() == b"content"
    assert (found["ContentType"], found["Metadata"]) == ("text/plain", {"owner": "ada"})
    assert found["CacheControl"] == "no-store"
    assert found["ETag"] == restarted.etags["a/ö.txt"]
    tags = s3.get_object_tagging(Bucket=SCRATCH, Key="a/ö.txt")["TagSet"]
    assert tags == [{"Key": "colour", "Value": "red"}]
    assert [(each["Key"], each["Size"]) for each in listed] == [("a/ö.txt", 7)]


def test_a_multipart_upload_comes_back_whole(restarted: Restarted) -> None:
    head = restarted.client("s3").head_object(Bucket=SCRATCH, Key="big")

    assert head["ETag"] == restarted.etags["big"]
    assert read(restarted.client, SCRATCH, "big") == b"".join(PARTS)


def test_versions_and_delete_markers_come_back_in_their_order(restarted: Restarted) -> None:
    client, s3 = restarted.client, restarted.client("s3")
    first, second = restarted.versions

    assert s3.get_bucket_versioning(Bucket=UPLOADS)["Status"] == "Enabled"
    with pytest.raises(s3.exceptions.NoSuchKey):
        read(client, UPLOADS, "a")
    assert read(client, UPLOADS, "a", VersionId=first) == b"1"
    assert read(client, UPLOADS, "a", VersionId=second) == b"2"
    (marker,) = s3.list_object_versions(Bucket=UPLOADS)["DeleteMarkers"]
    s3.delete_object(Bucket=UPLOADS, Key="a", VersionId=marker["VersionId"])
    assert read(client, UPLOADS, "a") == b"2"
    assert s3.put_object(Bucket=UPLOADS, Key="a", Body=b"3")["VersionId"] not in {first, second}


def test_a_key_keeps_its_id_and_decrypts_what_it_has_encrypted(restarted: Restarted) -> None:
    kms = restarted.client("kms")
    mine = kms.describe_key(KeyId="alias/mine")["KeyMetadata"]["KeyId"]

    assert [key_id(restarted.client), mine] == restarted.keys
    for each in restarted.ciphertexts:
        assert kms.decrypt(CiphertextBlob=each, EncryptionContext=CONTEXT)["Plaintext"] == b"secret"


def test_what_was_deleted_stays_deleted_and_leaves_no_file(tmp_path: Path) -> None:
    with run(tmp_path) as client:
        client("s3").put_object(Bucket=SCRATCH, Key="a", Body=b"to be deleted")
        until(lambda: saved(tmp_path, "a"), "it is saved")
        client("s3").delete_object(Bucket=SCRATCH, Key="a")
    assert not list((tmp_path / "aws" / "objects").iterdir())
    with run(tmp_path) as client:
        assert "Contents" not in client("s3").list_objects_v2(Bucket=SCRATCH)


def test_a_bucket_of_a_callers_own_comes_back_and_one_that_left_the_template_is_not_forgotten(
    tmp_path: Path,
) -> None:
    with run(tmp_path) as client:
        client("s3").create_bucket(Bucket="a-callers-own")
        client("s3").put_object(Bucket="a-callers-own", Key="a", Body=b"1")
        client("s3").put_object(Bucket=SCRATCH, Key="b", Body=b"2")
    children = Children(tmp_path / "processes")
    try:  # a run without the template
        log = tmp_path / "aws.log"
        client = aws.clients(aws.start(children, ports.listen(0), log, state=tmp_path / "aws"))
        assert read(client, "a-callers-own", "a") == b"1"
        client("s3").put_object(Bucket="a-callers-own", Key="c", Body=b"3")
        until(lambda: saved(tmp_path, "c"), "it is saved")
    finally:
        children.close()
    with run(tmp_path) as client:
        assert read(client, "a-callers-own", "c") == b"3"
        assert read(client, SCRATCH, "b") == b"2"


def test_a_killed_run_has_lost_no_more_than_its_last_seconds(tmp_path: Path) -> None:
    with run(tmp_path, stopped=False) as client:
        before = key_id(client)
        client("s3").put_object(Bucket=SCRATCH, Key="a", Body=b"1")
        until(lambda: saved(tmp_path, "a"), "it is saved without being asked")
    with run(tmp_path) as client:
        assert read(client, SCRATCH, "a") == b"1"
        assert key_id(client) == before


def test_a_run_killed_while_it_writes_leaves_one_moments_state(tmp_path: Path) -> None:
    """Every object that is found has its content, for the index is written after it."""
    for number in range(2):
        with run(tmp_path, stopped=False) as client:
            stop = threading.Event()
            writer = threading.Thread(target=_write, args=(client, number, stop))
            writer.start()
            until(partial(saved, tmp_path, f"{number}-20"), "some are saved")
        stop.set()
        writer.join()
    with run(tmp_path) as client:
        listed = client("s3").list_objects_v2(Bucket=SCRATCH)["Contents"]
        for each in listed:
            assert read(client, SCRATCH, each["Key"]) == each["Key"].encode() * 1000
        assert {"0-20", "1-20"} <= {each["Key"] for each in listed}


def _write(client: aws.Client, number: int, stop: threading.Event) -> None:
    s3 = client("s3")
    for n in range(100_000):
        if stop.is_set():
            return
        key = f"{number}-{n}"
        try:
            s3.put_object(Bucket=SCRATCH, Key=key, Body=key.encode() * 1000)
        except Exception:  # noqa: BLE001  it was killed meanwhile
            return


def test_a_damaged_index_is_set_aside_and_said(tmp_path: Path) -> None:
    with run(tmp_path) as client:
        client("s3").put_object(Bucket=SCRATCH, Key="a", Body=b"1")
    index = tmp_path / "aws" / "index.json"
    assert index.stat().st_mode & 0o777 == 0o600, "it has the keys' material"
    assert "1 object (0.0 MB) and 1 key of the last run" in state.prepare(tmp_path / "aws")
    index.write_text(index.read_text()[:-20])
    told = state.prepare(tmp_path / "aws")
    (aside,) = tmp_path.glob("aws.damaged-*")

    assert "can't be read" in told
    assert str(aside) in told
    assert list((aside / "objects").iterdir()), "nothing of it is deleted"
    with run(tmp_path) as client:
        assert "Contents" not in client("s3").list_objects_v2(Bucket=SCRATCH)


def test_an_object_whose_content_is_damaged_is_left_out_and_logged(tmp_path: Path) -> None:
    with run(tmp_path) as client:
        for key in ("good", "bad"):
            client("s3").put_object(Bucket=SCRATCH, Key=key, Body=key.encode())
    objects = {each["name"]: each["sha256"] for each in State(tmp_path / "aws").load().objects}
    (tmp_path / "aws" / "objects" / objects["bad"]).write_bytes(b"torn")
    with run(tmp_path) as client:
        assert [each["Key"] for each in client("s3").list_objects_v2(Bucket=SCRATCH)["Contents"]] == ["good"]
    assert f"{SCRATCH}/bad is lost" in (tmp_path / "aws.log").read_text()


def test_a_secret_that_a_function_made_comes_back(restarted: Restarted) -> None:
    secrets = restarted.client("secretsmanager")
    assert secrets.get_secret_value(SecretId=PRIVATE_KEY)["SecretString"] == "a key"
    with pytest.raises(secrets.exceptions.ResourceNotFoundException):
        secrets.get_secret_value(SecretId=DELETED)
