"""A project's status: which of its steps are legal, and what moves it.

    draft · ready · error · deployed → generating → ready | error
    draft · ready · error · deployed → deploying → deployed | error; if aborted to what it is without that:
    deployed once it was, else ready once something was made, else draft

A generation may begin while a deployment is under way: the project is `generating` then, and what is
deployed meanwhile leaves its status alone, since something newer than that is being made. A site's status
tells whether it is published, and an archived project stays archived.
"""

from typing import Literal
from uuid import UUID

from backplane import access, db
from backplane.deployment_reports import Status

Made = Literal["generating", "ready", "error"]


def lock(tx: db.Tx, project_id: UUID, *, live: bool = False) -> UUID:
    """Keeps others from starting or ending anything on a project until the transaction ends. Answers an id
    for a new row. Raises NotFound.
    """
    row = tx.execute(
        """
        SELECT platform.new_id() AS id
        FROM projects.projects
        WHERE id = %(id)s AND (deleted_at IS NULL OR NOT %(live)s)
        FOR NO KEY UPDATE
        """,
        {"id": project_id, "live": live},
    ).fetchone()
    if row is None:
        raise access.missing()
    new_id: UUID = row["id"]
    return new_id


def generated(tx: db.Tx, project_id: UUID, status: Made) -> None:
    """A generation began or ended."""
    tx.execute(
        """
        UPDATE projects.projects
        SET status = CASE WHEN kind = 'site' THEN status ELSE %(status)s::projects.status END
        WHERE id = %(id)s
        """,
        {"id": project_id, "status": status},
    )


def deploying(tx: db.Tx, project_id: UUID) -> None:
    """A deployment began."""
    tx.execute(
        """
        UPDATE projects.projects
        SET status = CASE WHEN kind <> 'site' AND status IN ('draft', 'ready', 'error', 'deployed')
                          THEN 'deploying' ELSE status END
        WHERE id = %s
        """,
        [project_id],
    )


def deployed(tx: db.Tx, project_id: UUID, end: Status, url: str | None) -> None:
    """A deployment ended, well ones at a URL where they have one. The last of several tells the status."""
    tx.execute(
        """
        UPDATE projects.projects AS p
        SET deployed_at = CASE WHEN %(end)s = 'successful' THEN clock_timestamp() ELSE deployed_at END,
            deployment_url = CASE WHEN %(end)s = 'successful' THEN coalesce(%(url)s, deployment_url)
                                  ELSE deployment_url END,
            status = CASE
                WHEN kind = 'site' OR status <> 'deploying' OR EXISTS (
                    SELECT 1
                    FROM deploys.deployments AS d
                    WHERE d.project_id = p.id AND d.finished_at IS NULL
                ) THEN status
                WHEN %(end)s = 'failed' THEN 'error'
                WHEN %(end)s = 'successful' OR deployed_at IS NOT NULL THEN 'deployed'
                WHEN files_version > 0 OR EXISTS (
                    SELECT 1
                    FROM projects.generations AS g
                    WHERE g.organization_id = p.organization_id
                      AND g.project_id = p.id
                      AND g.status = 'completed'
                ) THEN 'ready'
                ELSE 'draft'
            END
        WHERE id = %(id)s
        """,
        {"id": project_id, "end": end, "url": url},
    )
