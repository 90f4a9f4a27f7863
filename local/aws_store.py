"""What outlives moto's process: S3 objects, KMS keys and secrets go to local.state's files and come back.

A thread looks once a second whether anything has changed. Buckets and keys of the template are filled
when CloudFormation makes them anew, by their name and their logical id; others at once. Of the secrets those
are kept that functions make; the stack brings its own.
"""

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.kms.models import Key, kms_backends
from moto.s3.models import FakeBucket, FakeDeleteMarker, FakeKey, S3Backend, s3_backends
from moto.secretsmanager.models import FakeSecret, secretsmanager_backends

from local.aws import REGION, STACK_NAME
from local.aws_gaps import put_around
from local.state import BLOCK, Index, State

INTERVAL = 1.0  # seconds between looks, and at least so many times what a look took
PATIENCE = 3
SETTLED = 2.0  # seconds after which nobody is still reading a new object's content for its ETag

# What is kept of an object beside its content: moto's attributes of plain values.
PLAIN = (
    *("_version_id", "_is_versioned", "_storage_class", "_etag", "encryption", "kms_key_id"),
    *("bucket_key_enabled", "lock_mode", "lock_legal_status", "lock_until", "checksum_algorithm"),
    *("checksum_value", "checksum_type", "checksum_parts", "website_redirect_location"),
)
OF_A_KEY = (
    *("policy", "key_usage", "key_spec", "description", "enabled", "key_state", "multi_region", "origin"),
    *("key_rotation_status", "key_manager", "creation_date", "rotations"),
)
SYMMETRIC = ("SYMMETRIC_DEFAULT", "HMAC")
MADE_BY_FUNCTIONS = f"{STACK_NAME}/integrations/"  # the secrets' names begin with it, as in template.yaml

log = logging.getLogger(__name__)


class Store:
    def __init__(self, state: State) -> None:
        self._state = state
        self._saved = state.load()
        # Of the last run, until the template or a caller makes it again: nothing is forgotten meanwhile.
        self._awaited_buckets = dict(self._saved.buckets)
        self._awaited_keys = dict(self._saved.keys)
        self._text = json.dumps([self._saved.buckets, self._saved.keys, self._saved.secrets])
        self._contents: WeakKeyDictionary[FakeKey, str] = WeakKeyDictionary()  # SHA-256 by object
        self._template_buckets: set[str] = set()
        self._logical_ids: dict[str, str | None] = {}  # by key id
        self._lock = threading.RLock()

    def attach(self) -> None:
        """Bring back what the template doesn't make, and wait for what it does."""
        put_around(S3Backend, "create_bucket", self._bucket_made)
        put_around(FakeBucket, "create_from_cloudformation_json", self._bucket_made_for_template)
        put_around(Key, "create_from_cloudformation_json", self._key_made)
        for name, bucket in list(self._awaited_buckets.items()):
            if not bucket["template"]:
                made = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(name, bucket["region"])
                made.versioning_status = bucket["versioning"]
        for name, text in self._saved.secrets.items():
            _secrets().create_secret(name, text, None, None, None, None, None, [], force_overwrite=False)
        for key_id, kept in list(self._awaited_keys.items()):
            if kept["resource"] is None:
                _restore_key(
                    _kms().create_key(None, kept["key_usage"], kept["key_spec"], "", None), key_id, kept
                )
                del self._awaited_keys[key_id]

    def follow(self) -> None:
        threading.Thread(target=self._follow, name="store", daemon=True).start()

    def save(self) -> None:
        """Write what has changed since the last time."""
        with self._lock:
            index = Index(
                {**self._awaited_buckets, **dict(self._buckets())},
                {**self._awaited_keys, **dict(self._keys())},
                dict(_kept_secrets()),
            )
            text = json.dumps([index.buckets, index.keys, index.secrets])
            if text != self._text:
                self._state.save(index)
                self._text = text
                self._state.sweep(index)

    def _follow(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.save()
            except (OSError, RuntimeError):  # a full disk; a dict that changed while it was walked
                log.exception("the state is not saved; trying again")
            time.sleep(max(INTERVAL, PATIENCE * (time.monotonic() - began)))

    # ---- coming back ----

    def _bucket_made_for_template(self, original: Any, *args: Any, **named: Any) -> FakeBucket:
        with self._lock:
            bucket: FakeBucket = original(*args, **named)
            self._template_buckets.add(bucket.name)
        return bucket

    def _bucket_made(
        self, original: Any, backend: S3Backend, bucket_name: str, *args: Any, **named: Any
    ) -> FakeBucket:
        with self._lock:
            bucket: FakeBucket = original(backend, bucket_name, *args, **named)
            if kept := self._awaited_buckets.get(bucket_name):
                for each in kept["objects"]:
                    self._restore_object(bucket, each)
                del self._awaited_buckets[bucket_name]
        return bucket

    def _restore_object(self, bucket: FakeBucket, kept: dict[str, Any]) -> None:
        name = kept["name"]
        versions = bucket.keys.getlist(name, [])
        if "sha256" not in kept:
            marker = FakeDeleteMarker(
                key=versions[-1] if versions else FakeKey(name, b"", bucket.account_id, REGION)
            )
            marker._version_id = kept["version_id"]  # noqa: SLF001  moto has no other way
            marker.last_modified = datetime.fromisoformat(kept["last_modified"])
            bucket.keys.setlist(name, [*versions, marker])
            return
        key = FakeKey(name, b"", bucket.account_id, bucket.region_name, bucket_name=bucket.name)
        try:
            key.contentsize = self._state.read_into(kept["sha256"], key._value_buffer)  # noqa: SLF001
        except (OSError, ValueError) as error:
            log.warning("%s/%s is lost: %s", bucket.name, name, error)
            key.dispose()
            return
        for attribute, value in kept["plain"].items():
            setattr(key, attribute, value)
        key._metadata.update(kept["metadata"])  # noqa: SLF001
        key.last_modified = datetime.fromisoformat(kept["last_modified"])
        self._contents[key] = kept["sha256"]
        bucket.keys.setlist(name, [*versions, key])
        if kept["tags"]:
            s3_backends[bucket.account_id]["aws"].tagger.tag_resource(key.arn, kept["tags"])

    def _key_made(self, original: Any, *args: Any, **named: Any) -> Key:
        with self._lock:
            key: Key = original(*args, **named)
            logical_id = named.get("LogicalId")
            for key_id, kept in self._awaited_keys.items():
                if kept["resource"] == logical_id:
                    described = {name: getattr(key, name) for name in ("policy", "description", "enabled")}
                    _restore_key(key, key_id, kept | described | {"aliases": []})
                    del self._awaited_keys[key_id]
                    break
            self._logical_ids[key.id] = logical_id
        return key

    # ---- being kept ----

    def _buckets(self) -> Iterator[tuple[str, Any]]:
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for name, bucket in list(backend.buckets.items()):
            # CloudFormation marks what it has made.
            yield (
                name,
                {
                    "template": getattr(bucket, "logical_resource_id", None) is not None,
                    "region": bucket.region_name,
                    "versioning": bucket.versioning_status,
                    "objects": list(self._objects(bucket)),
                },
            )

    def _objects(self, bucket: FakeBucket) -> Iterator[dict[str, Any]]:
        for name, versions in list(bucket.keys.lists()):
            for each in list(versions):
                if isinstance(each, FakeDeleteMarker):
                    yield {
                        "name": name,
                        "version_id": each.version_id,
                        "last_modified": each.last_modified.isoformat(),
                    }
                elif sha256 := self._content(each):
                    yield {
                        "name": name,
                        "sha256": sha256,
                        "bytes": each.contentsize,
                        "plain": {attribute: _json(getattr(each, attribute)) for attribute in PLAIN},
                        "metadata": dict(each.metadata),
                        "last_modified": each.last_modified.isoformat(),
                        "tags": _tags(bucket, each),
                    }

    def _content(self, key: FakeKey) -> str | None:
        """The kept content's SHA-256; None: it is too new, or gone."""
        if sha256 := self._contents.get(key):
            return sha256
        if key._etag is None:  # noqa: SLF001  moto is about to read it, without the lock
            age = datetime.now(key.last_modified.tzinfo) - key.last_modified
            if age.total_seconds() < SETTLED:
                return None
        with key.lock, suppress(ValueError):  # deleted meanwhile: its file is closed
            key._value_buffer.seek(0)  # noqa: SLF001
            blocks = iter(partial(key._value_buffer.read, BLOCK), b"")  # noqa: SLF001
            return self._contents.setdefault(key, self._state.put(blocks))
        return None

    def _keys(self) -> Iterator[tuple[str, Any]]:
        for key_id, key in list(_kms().keys.items()):
            if key.key_spec.startswith(SYMMETRIC):
                yield (
                    key_id,
                    {
                        **{name: getattr(key, name) for name in OF_A_KEY},
                        "resource": self._logical_ids.get(key_id),
                        "material": base64.b64encode(key.key_material).decode(),
                        "deletion_date": key.deletion_date.isoformat() if key.deletion_date else None,
                        "aliases": sorted(key.aliases),
                    },
                )


def _json(value: Any) -> Any:
    """Some of moto's texts are bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _tags(bucket: FakeBucket, key: FakeKey) -> list[dict[str, str]]:
    tags: list[dict[str, str]] = s3_backends[bucket.account_id]["aws"].tagger.list_tags_for_resource(key.arn)[
        "Tags"
    ]
    return tags


def _kept_secrets() -> Iterator[tuple[str, str]]:
    for secret in list(_secrets().secrets.values()):
        of_ours = isinstance(secret, FakeSecret) and secret.name.startswith(MADE_BY_FUNCTIONS)
        if of_ours and secret.secret_string is not None and not secret.is_deleted():
            yield secret.name, secret.secret_string


def _secrets() -> Any:
    return secretsmanager_backends[DEFAULT_ACCOUNT_ID][REGION]


def _kms() -> Any:
    return kms_backends[DEFAULT_ACCOUNT_ID][REGION]


def _restore_key(key: Key, key_id: str, kept: dict[str, Any]) -> None:
    """Make of a new key the one that is kept."""
    backend = _kms()
    del backend.keys[key.id]
    key.arn = key.arn.replace(key.id, key_id)
    key.id = key_id
    key.key_material = base64.b64decode(kept["material"])
    key.deletion_date = datetime.fromisoformat(kept["deletion_date"]) if kept["deletion_date"] else None
    for name in OF_A_KEY:
        setattr(key, name, kept.get(name, getattr(key, name)))
    backend.keys[key_id] = key
    for alias in kept["aliases"]:
        backend.create_alias(key_id, alias)
