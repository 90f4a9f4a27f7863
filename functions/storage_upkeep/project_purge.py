"""Projects that were deleted so long ago that nobody may restore them: what was in them goes.

The row stays, for what refers to it: deployments, generations with their credits, forks. Uploads stay too:
they are the organisation's, and outlive the project that they came by.
"""

from typing import LiteralString
from uuid import UUID

from backplane import db, limits, outbox, stored_objects

# All that a project has beside its own row, its objects and its deployments.
_CONTENTS: tuple[LiteralString, ...] = (
    "DELETE FROM projects.shares WHERE project_id = %s",
    "DELETE FROM projects.favorites WHERE project_id = %s",
    "DELETE FROM projects.messages WHERE project_id = %s",
    "DELETE FROM projects.file_versions WHERE project_id = %s",
    "DELETE FROM projects.settings WHERE project_id = %s",
    "DELETE FROM projects.app_settings WHERE project_id = %s",
    "DELETE FROM projects.site_settings WHERE project_id = %s",
    "DELETE FROM deploys.integrations WHERE project_id = %s",
    """
    UPDATE projects.generations
    SET prompt = '', response = NULL, error_message = CASE WHEN status = 'failed' THEN '' END
    WHERE project_id = %s
    """,
)


def due(tx: db.Tx, *, days: int, limit: int) -> list[UUID]:
    """Those deleted more than so many days ago, the earliest first."""
    rows = tx.execute(
        """
        SELECT id
        FROM projects.projects
        WHERE deleted_at < clock_timestamp() - make_interval(days => %(days)s) AND purged_at IS NULL
        ORDER BY deleted_at
        LIMIT %(limit)s
        """,
        {"days": days, "limit": limit},
    ).fetchall()
    return [row["id"] for row in rows]


def purge(tx: db.Tx, project_id: UUID, *, days: int) -> bool:
    """Answers False where it was restored or purged meanwhile. The objects themselves go a little later."""
    row = tx.execute(
        """
        UPDATE projects.projects
        SET purged_at = clock_timestamp(), is_public = false, description = NULL, tags = '{}',
            features = '{}', slug = 'deleted-' || replace(id::text, '-', ''), message_count = 0,
            files_version = 0
        WHERE id = %(id)s
          AND deleted_at < clock_timestamp() - make_interval(days => %(days)s)
          AND purged_at IS NULL
        RETURNING organization_id, kind
        """,
        {"id": project_id, "days": days},
    ).fetchone()
    if row is None:
        return False
    for statement in _CONTENTS:
        tx.execute(statement, [project_id])
    _release_objects(tx, project_id, row["organization_id"])
    payload = {"project_id": str(project_id), "kind": row["kind"]}
    outbox.append(tx, "project.purged", organization_id=row["organization_id"], payload=payload)
    return True


def _release_objects(tx: db.Tx, project_id: UUID, organization_id: UUID) -> None:
    """Versions of files and bundles count no longer."""
    gone = tx.execute(
        """
        UPDATE storage.objects
        SET state = 'deleted', deleted_at = clock_timestamp()
        WHERE organization_id = %(organization_id)s
          AND project_id = %(project_id)s
          AND kind IN ('files', 'bundle')
          AND state IN ('granted', 'stored')
        RETURNING bytes
        """,
        {"project_id": project_id, "organization_id": organization_id},
    ).fetchall()
    limits.give_back(tx, organization_id, stored_objects.LIMIT, sum(object_["bytes"] for object_ in gone))
