"""A project's rows: made, read, changed, deleted softly and restored.

Each function takes a transaction bound to the organisation that owns the project.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg
from project_requests import Changes, NewProject, Template
from project_views import ProjectDetails, PublicProject
from psycopg import sql
from psycopg.types.json import Jsonb

from backplane import access, db, leases, limits, outbox, subscriptions
from backplane.auth import Caller
from backplane.problems import Conflict, Forbidden, InvalidState, NotFound, Unprocessable

PRIVATE_PROJECTS = "private-projects"  # the feature of the plans that have them

# Of projects.projects AS p, for `shown`; %(user_id)s is whose favourites are meant.
COLUMNS = """
    p.id, p.kind, p.title, p.description, p.slug, p.status, p.template_name, p.template_version,
    p.template_category, p.features, p.tags, p.is_public, p.message_count, p.forked_from, p.deployment_url,
    p.deployed_at, p.created_at, p.updated_at, p.deleted_at,
    EXISTS (
        SELECT 1
        FROM projects.favorites AS f
        WHERE f.project_id = p.id AND f.user_id = %(user_id)s
    ) AS is_favorite,
    EXISTS (
        SELECT 1
        FROM projects.generations AS g
        WHERE g.project_id = p.id AND g.status = 'in_progress' AND g.lock_expires_at > clock_timestamp()
    ) AS update_in_progress
"""
_SETTINGS = frozenset({"config", "last_entry_id", "generated_path", "repository_url"})
_OWN = frozenset({"title", "description", "slug", "status", "features", "tags"})


# What a project of a kind counts against, from its creation to its deletion.
LIMITS: Mapping[str, str] = {"mobile": "app.projects", "web": "app.projects", "site": "site.projects"}


def create(
    tx: db.Tx,
    caller: Caller,
    new: NewProject,
    *,
    id: UUID | None = None,  # noqa: A002  the column's name
    forked_from: UUID | None = None,
) -> ProjectDetails:
    """Raises FeatureNotInPlan, PlanLimitReached."""
    is_public = visibility(tx, caller.organization_id, new.is_public)
    limits.take(tx, caller.organization_id, LIMITS[new.kind])
    row = tx.execute(
        """
        INSERT INTO projects.projects
            (id, organization_id, created_by, kind, title, description, template_name, template_version,
             template_category, features, tags, is_public, forked_from)
        VALUES
            (coalesce(%(id)s, platform.new_id()), %(organization_id)s, %(created_by)s, %(kind)s, %(title)s,
             %(description)s, %(template_name)s, %(template_version)s, %(template_category)s, %(features)s,
             %(tags)s, %(is_public)s, %(forked_from)s)
        RETURNING id
        """,
        {
            "id": id,
            "organization_id": caller.organization_id,
            "created_by": caller.user_id,
            "kind": new.kind,
            "title": new.title,
            "description": new.description,
            "features": new.features,
            "tags": new.tags,
            "forked_from": forked_from,
            "is_public": is_public,
        }
        | _template(new.template),
    ).fetchone()
    if row is None:
        raise RuntimeError("an insert answers its row")
    _add_settings(tx, row["id"])
    outbox.append(
        tx,
        "project.created",
        organization_id=caller.organization_id,
        payload={"project_id": str(row["id"]), "kind": new.kind},
    )
    return read(tx, row["id"], caller.user_id)


def _add_settings(tx: db.Tx, project_id: UUID) -> None:
    """The rows that a project of its kind has beside its own."""
    tx.execute(
        """
        WITH project AS (
            SELECT id, organization_id, kind FROM projects.projects WHERE id = %(id)s
        ), settings AS (
            INSERT INTO projects.settings (project_id, organization_id)
            SELECT id, organization_id FROM project
        ), app_settings AS (
            INSERT INTO projects.app_settings (project_id, organization_id)
            SELECT id, organization_id FROM project WHERE kind <> 'site'
        )
        INSERT INTO projects.site_settings (project_id, organization_id)
        SELECT id, organization_id FROM project WHERE kind = 'site'
        """,
        {"id": project_id},
    )


def visibility(tx: db.Tx, organization_id: UUID, wanted: bool | None) -> bool:
    """Whether a project is to be public. Raises FeatureNotInPlan."""
    if wanted is False:
        limits.require_feature(tx, organization_id, PRIVATE_PROJECTS)
    if wanted is None:
        return PRIVATE_PROJECTS not in subscriptions.entitlement(tx, organization_id).features
    return wanted


def read(tx: db.Tx, project_id: UUID, user_id: UUID | None) -> ProjectDetails:
    """A live project of this organisation, as its own people see it. Raises NotFound."""
    row = tx.execute(
        f"""
        SELECT {COLUMNS},
               CASE WHEN p.created_by IS NOT NULL THEN jsonb_build_object(
                   'id', p.created_by, 'email', u.email,
                   'name', nullif(trim(concat_ws(' ', u.first_name, u.last_name)), '')) END AS created_by,
               s.config, s.last_entry_id, s.generated_path, s.repository_url,
               CASE WHEN num_nonnulls(s.supabase_project_ref, s.supabase_url, s.supabase_anon_key) > 0
                   THEN jsonb_build_object('project_ref', s.supabase_project_ref, 'url', s.supabase_url,
                                           'anon_key', s.supabase_anon_key) END AS supabase,
               to_jsonb(a) AS app,
               to_jsonb(t) AS site
        FROM projects.projects AS p
        JOIN projects.settings AS s ON s.project_id = p.id
        LEFT JOIN projects.app_settings AS a ON a.project_id = p.id
        LEFT JOIN projects.site_settings AS t ON t.project_id = p.id
        LEFT JOIN identity.users AS u ON u.id = p.created_by
        WHERE p.id = %(id)s AND p.deleted_at IS NULL
        """.encode(),
        {"id": project_id, "user_id": user_id},
    ).fetchone()
    if row is None:
        raise access.missing()
    return ProjectDetails.model_validate(shown(row))


def read_public(tx: db.Tx, project_id: UUID) -> PublicProject:
    """Another organisation's project, as anybody sees it. Raises NotFound."""
    row = tx.execute(
        f"SELECT {COLUMNS} FROM projects.projects AS p WHERE p.id = %(id)s AND p.is_public".encode(),
        {"id": project_id, "user_id": None},
    ).fetchone()
    if row is None:
        raise access.missing()
    return PublicProject.model_validate(shown(row))


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of COLUMNS in the form of Project."""
    template = row["template_name"] and {
        "name": row["template_name"],
        "version": row["template_version"],
        "category": row["template_category"],
    }
    return {**row, "template": template}


# ---- changes ----


def change(tx: db.Tx, caller: Caller, project_id: UUID, changes: Changes) -> ProjectDetails:
    """Raises NotFound, Conflict (a name is taken), Unprocessable, FeatureNotInPlan."""
    project = _locked(tx, project_id)
    sent = changes.model_dump(exclude_unset=True)
    if sent.pop("is_favorite", None) is not None:
        _set_favorite(tx, caller, project_id, changes.is_favorite)
    if sent:
        try:
            _store(tx, project, changes, sent)
        except psycopg.errors.UniqueViolation as error:
            raise _taken(error) from error
    return read(tx, project_id, caller.user_id)


def _store(tx: db.Tx, project: Mapping[str, Any], changes: Changes, sent: dict[str, Any]) -> None:
    own = {name: sent[name] for name in _OWN & sent.keys()}
    if "is_public" in sent:
        own["is_public"] = visibility(tx, project["organization_id"], changes.is_public)
    if "template" in sent:
        own |= _template(changes.template)
    if "status" in sent and project["status"] in {"generating", "deploying"}:
        raise InvalidState(f"The project is {project['status']}: wait until that is over.")
    settings = {name: sent[name] for name in _SETTINGS & sent.keys()}
    if "config" in settings:
        settings["config"] = Jsonb(changes.config)
    if "supabase" in sent:
        fields = sent["supabase"] or dict.fromkeys(("project_ref", "url", "anon_key"))
        settings |= {f"supabase_{name}": value for name, value in fields.items()}
    _update(tx, "settings", "project_id", project["id"], settings)
    for name, fits in (("app", project["kind"] != "site"), ("site", project["kind"] == "site")):
        if name in sent and not fits:
            raise Unprocessable(
                f"A project of kind {project['kind']} has no {name} settings. Leave {name} out.",
                errors=[{"loc": ["body", name], "msg": "Not of this kind", "type": "wrong_kind"}],
            )
        _update(tx, f"{name}_settings", "project_id", project["id"], sent.get(name, {}))
    _update(tx, "projects", "id", project["id"], own or {"title": project["title"]})  # touched in any case


def _update(tx: db.Tx, table: str, key: str, project_id: UUID, values: Mapping[str, Any]) -> None:
    if not values:
        return
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values
    )
    statement = sql.SQL("UPDATE {} SET {} WHERE {} = %(this)s").format(
        sql.Identifier("projects", table), assignments, sql.Identifier(key)
    )
    tx.execute(statement, {**values, "this": project_id})


def _locked(tx: db.Tx, project_id: UUID) -> Mapping[str, Any]:
    """A live project's row, held until the transaction ends. Raises NotFound."""
    row = tx.execute(
        """
        SELECT id, organization_id, kind, title, status
        FROM projects.projects
        WHERE id = %s AND deleted_at IS NULL
        FOR NO KEY UPDATE
        """,
        [project_id],
    ).fetchone()
    if row is None:
        raise access.missing()
    return row


def _set_favorite(tx: db.Tx, caller: Caller, project_id: UUID, wanted: bool) -> None:
    if caller.user_id is None:
        raise Forbidden("A favourite is a person's: sign in with a session token to keep one.")
    statement = (
        """
        INSERT INTO projects.favorites (user_id, project_id, organization_id)
        SELECT %(user_id)s, id, organization_id FROM projects.projects WHERE id = %(project_id)s
        ON CONFLICT (user_id, project_id) DO NOTHING
        """
        if wanted
        else "DELETE FROM projects.favorites WHERE user_id = %(user_id)s AND project_id = %(project_id)s"
    )
    tx.execute(statement.encode(), {"user_id": caller.user_id, "project_id": project_id})


def _taken(error: psycopg.errors.UniqueViolation) -> Conflict:
    names = {
        "projects_organization_id_slug_key": "slug",
        "site_settings_subdomain_key": "subdomain",
        "site_settings_custom_domain_key": "custom_domain",
    }
    return Conflict(f"This {names[error.diag.constraint_name or '']} is taken. Choose another one.")


def _template(template: Template | None) -> dict[str, Any]:
    return {
        "template_name": template and template.name,
        "template_version": template and template.version,
        "template_category": template and template.category,
    }


# ---- the end, and back ----


def delete(tx: db.Tx, caller: Caller, project_id: UUID) -> None:
    """Softly: it is gone from every list and search, and can be restored; a generation in progress
    ends. Raises NotFound.
    """
    project = _counted(tx, project_id, deleted=False)
    limits.give_back(tx, project["organization_id"], LIMITS[project["kind"]])
    leases.abandon(tx, project_id, "The project was deleted.", actor=caller.actor)
    changed = tx.execute(
        "UPDATE projects.projects SET deleted_at = clock_timestamp() WHERE id = %s AND deleted_at IS NULL",
        [project_id],
    )
    if not changed.rowcount:  # by another request, a moment ago
        raise access.missing()
    outbox.append(
        tx,
        "project.deleted",
        organization_id=project["organization_id"],
        payload={"project_id": str(project_id), "kind": project["kind"]},
    )


def restore(tx: db.Tx, caller: Caller, project_id: UUID) -> ProjectDetails:
    """Counts against the limit again. Raises NotFound (also where it is purged), InvalidState (it is not
    deleted), PlanLimitReached.
    """
    project = _counted(tx, project_id, deleted=True)
    limits.take(tx, project["organization_id"], LIMITS[project["kind"]])
    changed = tx.execute(
        """
        UPDATE projects.projects
        SET deleted_at = NULL
        WHERE id = %s AND deleted_at IS NOT NULL AND purged_at IS NULL
        """,
        [project_id],
    )
    if not changed.rowcount:  # restored or purged, a moment ago
        _counted(tx, project_id, deleted=True)
        raise _not_deleted()
    return read(tx, project_id, caller.user_id)


def _counted(tx: db.Tx, project_id: UUID, *, deleted: bool) -> Mapping[str, Any]:
    """What the limits must know before the project's row is locked."""
    row = tx.execute(
        "SELECT organization_id, kind, deleted_at, purged_at FROM projects.projects WHERE id = %s",
        [project_id],
    ).fetchone()
    if row is None or (row["deleted_at"] is not None and not deleted):
        raise access.missing()
    if row["purged_at"] is not None:
        raise NotFound(
            "The project was deleted too long ago to be restored: its files and messages are gone."
        )
    if row["deleted_at"] is None and deleted:
        raise _not_deleted()
    return row


def _not_deleted() -> Conflict:
    return InvalidState("The project is not deleted: there is nothing to restore.")
