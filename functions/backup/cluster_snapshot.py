"""A snapshot of the Aurora cluster, for databases that are too large to be dumped in a function's time."""

import time
from functools import cache
from typing import Any, Final

from botocore.config import Config

from backplane.archives import Snapshot

PREFIX: Final = "backplane-"  # of the snapshots that the function's policy lets it make and delete
POLL: Final = 5.0  # seconds


class SnapshotError(RuntimeError):
    """RDS did not make the snapshot."""


def take(cluster: str, name: str, *, ends: float) -> Snapshot:
    """Ask for a snapshot and wait for it, until `ends` on the monotonic clock at most.

    What is not seen to be available by then is answered as `creating`: RDS goes on. Raises SnapshotError.
    """
    client = _client()
    identifier = f"{PREFIX}{name.replace('_', '-')}-{cluster}"
    made = client.create_db_cluster_snapshot(
        DBClusterSnapshotIdentifier=identifier,
        DBClusterIdentifier=cluster,
        Tags=[{"Key": "backplane:backup", "Value": name}],
    )["DBClusterSnapshot"]
    while made["Status"] == "creating" and time.monotonic() + POLL < ends:
        time.sleep(POLL)
        made = client.describe_db_cluster_snapshots(DBClusterSnapshotIdentifier=identifier)[
            "DBClusterSnapshots"
        ][0]
    if made["Status"] not in {"available", "creating"}:
        raise SnapshotError(f"the snapshot {identifier} of {cluster} is {made['Status']}")
    return Snapshot(
        identifier=identifier, arn=made["DBClusterSnapshotArn"], cluster=cluster, status=made["Status"]
    )


def delete(snapshot: Snapshot) -> None:
    """One that is gone already is no error."""
    client = _client()
    try:
        client.delete_db_cluster_snapshot(DBClusterSnapshotIdentifier=snapshot.identifier)
    except client.exceptions.DBClusterSnapshotNotFoundFault:
        return


@cache
def _client() -> Any:
    import boto3  # a quarter of a second, which dumps need not pay twice

    return boto3.client(
        "rds",
        config=Config(
            connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4}
        ),
    )
