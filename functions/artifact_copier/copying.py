"""One artefact from its provider into the bucket: streamed, counted, and hashed on the way."""

import re
from functools import partial
from hashlib import sha256
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from aws_lambda_powertools import Logger

from backplane import artifacts, buckets, db, downloads, stored_objects
from backplane.artifacts import Claim, Copy
from backplane.config import settings
from backplane.downloads import BrokenOffError, Download, Reach, RefusedError
from backplane.multipart import Upload, UploadError, part_size
from backplane.problems import PlanLimitReached, Problem
from backplane.stored_objects import Granted

OTHER_TYPE: Final = "application/octet-stream"
# What stores and devices take; of anything else, the name says nothing of what it is.
_ENDINGS: Final = (".aab", ".apk", ".ipa", ".app", ".tar.gz", ".zip")
_TYPE: Final = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}", re.ASCII)

logger = Logger(child=True)


def copy(artifact_id: UUID, *, ends: float, reach: Reach) -> artifacts.State | None:
    """Copies it until `ends`, on time.monotonic's clock, if it is to be copied now; None where it isn't.

    Raises Unavailable where the database isn't there: the claim's lease ends then.
    """
    claim = db.run(partial(artifacts.claim, artifact_id=artifact_id))
    if claim is None:
        return None
    if claim.deleted:
        db.run(lambda tx: artifacts.give_up(tx, claim, "It is not copied: its deployment was deleted."))
        return None
    if claim.attempts > artifacts.MAX_ATTEMPTS:  # none of those before lived to say what became of it
        return _given_up(claim, "It is not copied: that was cut off again and again.")
    try:
        stored = _copied(claim, ends=ends, reach=reach)
    except RefusedError as refusal:
        return _given_up(claim, f"It is not copied: {refusal}.")
    except PlanLimitReached as refusal:
        return _put_off(claim, f"There is no room for it. {refusal.detail}", told=True)
    except BrokenOffError as failure:
        return _put_off(claim, f"It could not be copied: {failure}.")
    except (UploadError, TimeoutError, Problem) as failure:  # ours, and nothing for whoever reads it
        logger.warning("an artefact could not be stored", artifact_id=str(claim.id), cause=str(failure))
        return _put_off(claim, "It could not be stored.")
    return "stored" if stored else None


def _copied(claim: Claim, *, ends: float, reach: Reach) -> bool:
    limit = settings().max_artifact_bytes
    with downloads.get(claim.source_url, limit=limit, ends=ends, reach=reach) as download:
        granted = db.run(
            lambda tx: artifacts.reserve(
                tx, claim, name=_name(claim), content_type=_type(download), size=download.length or 0
            )
        )
        try:
            made = _streamed(download, granted, limit, ends)
            return db.run(lambda tx: artifacts.store(tx, claim, made))
        except BaseException:
            _let_go(granted)
            raise


def _streamed(download: Download, granted: Granted, limit: int, ends: float) -> Copy:
    """What was put into the bucket: all of it, or an upload that is aborted."""
    upload = Upload(buckets.place(), granted.s3_key, _type(download), size=part_size(limit), ends=ends)
    digest, whole = sha256(), False
    try:
        for block in download.blocks():
            digest.update(block)
            upload.write(block)
        version, whole = upload.complete(), True
    finally:
        if not whole:
            upload.abort()
    if version is None:
        raise UploadError("the bucket keeps no versions")
    return Copy(granted, version, upload.bytes, digest.hexdigest())


def _let_go(granted: Granted) -> None:
    """Its bytes count no longer. Where that fails too, they don't once the grant is over."""
    try:
        db.run(
            lambda tx: stored_objects.release(
                tx, granted.id, of="granted", to="rejected", reason="its copy was broken off"
            )
        )
    except Problem:
        logger.warning("not let go", object_id=str(granted.id))


# ---- what became of it ----


def _given_up(claim: Claim, reason: str) -> artifacts.State:
    logger.error("an artefact is given up", artifact_id=str(claim.id), reason=reason)
    db.run(lambda tx: artifacts.give_up(tx, claim, reason))
    return "failed"


def _put_off(claim: Claim, reason: str, *, told: bool = False) -> artifacts.State:
    logger.warning("an artefact is not copied yet", artifact_id=str(claim.id), reason=reason)
    return db.run(lambda tx: artifacts.put_off(tx, claim, reason, told=told))


# ---- what it is called ----


def _name(claim: Claim) -> str:
    """As it is downloaded: `android-1.0.2-123.aab`."""
    path = urlsplit(claim.source_url).path.lower()
    ending = next((each for each in _ENDINGS if path.endswith(each)), "")
    parts = (claim.kind, claim.app_version, claim.build_number)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(part for part in parts if part))[:100] + ending


def _type(download: Download) -> str:
    told = download.content_type.partition(";")[0].strip().lower()
    return told if _TYPE.fullmatch(told) else OTHER_TYPE
