"""Who calls: a table of everything that is refused, and what each caller may do."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backplane import auth, config, db, identity
from backplane.problems import BadRequest, Forbidden, NotFound, Problem, Unauthorized
from backplane.scopes import SCOPES_OF_KEY, SCOPES_OF_PLATFORM_ADMIN, SERVER_SCOPES

NOW = 1_800_000_000.0
ISSUER = "https://clerk.example.com"
ORIGIN = "https://app.example.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

USER = UUID("00000000-0000-7000-8000-000000000001")
ISSUED_AT = datetime.fromtimestamp(NOW - 10, UTC)  # as the claims below have it
HOME = UUID("00000000-0000-7000-8000-0000000000aa")  # the caller's organisation
ELSEWHERE = UUID("00000000-0000-7000-8000-0000000000bb")  # another live one
AT_CLERKS = UUID("00000000-0000-7000-8000-0000000000ee")  # one that Clerk manages, of the caller's too
DELETED = UUID("00000000-0000-7000-8000-0000000000cc")
NOWHERE = UUID("00000000-0000-7000-8000-0000000000dd")
KEY_ID = UUID("00000000-0000-7000-8000-00000000000b")
ORGANIZATION_KEY = auth.mint_key("organization")
SERVICE_KEY = auth.mint_key("service")


def resolved(**changes: Any) -> dict[str, Any]:
    """What the database knows of a member, in the shape of identity.resolve_caller."""
    return {
        "user_id": USER,
        "user_state": "active",
        "platform_role": "user",
        "organization_id": HOME,
        "organization_state": "active",
        "member_role": "member",
        "role_is_newer": False,
    } | changes


UNKNOWN_USER = resolved(
    user_id=None,
    user_state="unknown",
    organization_id=None,
    organization_state="unknown",
    member_role=None,
)


@dataclass
class World:
    """The database as these tests need it: it answers the look-ups and remembers them."""

    caller: dict[str, Any] = field(default_factory=resolved)
    provisioned: dict[str, Any] = field(default_factory=resolved)
    key: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    provisionings: list[dict[str, Any]] = field(default_factory=list)

    def call(self, query: str, params: dict[str, Any], *, repeatable: bool) -> dict[str, Any] | None:
        assert repeatable  # a look-up
        self.calls.append(params)
        if "identity.resolve_caller" in query:
            return self.caller
        if "platform.find_api_key" in query:
            return self._find_api_key(params["prefix"])
        if "tenancy.find_membership" in query:
            assert params["user_id"] == USER
            return {
                ELSEWHERE: {"role": "editor", "is_clerks": False},
                AT_CLERKS: {"role": "owner", "is_clerks": True},
            }.get(params["organization_id"])
        assert "tenancy.find_organization" in query
        states = {HOME: "active", ELSEWHERE: "active", DELETED: "deleted"}
        return {"id": params["id"], "state": states[params["id"]]} if params["id"] in states else None

    def _find_api_key(self, prefix: str) -> dict[str, Any] | None:
        service = prefix == SERVICE_KEY.prefix
        material = SERVICE_KEY if service else ORGANIZATION_KEY
        if prefix != material.prefix:
            return None
        return {
            "id": KEY_ID,
            "kind": material.kind,
            "organization_id": None if service else HOME,
            "secret_hash": material.secret_hash,
            "scopes": ["read", "credits:spend", "credits:settle"],
            "expires_at": None,
            "revoked_at": None,
            "organization_state": None if service else "active",
            "use_is_due": False,
        } | self.key

    def provision(self, clerk_user_id: str, **details: Any) -> identity.Resolved:
        self.provisionings.append({"clerk_user_id": clerk_user_id} | details)
        return identity.Resolved(**self.provisioned)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(db, "call", world.call)
    monkeypatch.setattr(identity, "provision_from_token", world.provision)
    monkeypatch.setenv("CLERK_ISSUER", ISSUER)
    monkeypatch.setenv("CLERK_JWT_KEY", PEM)
    monkeypatch.setenv("ALLOWED_ORIGINS", ORIGIN)
    monkeypatch.setenv("PLATFORM_ADMINS", "user_root, user_other")
    config.settings.cache_clear()
    yield world
    config.settings.cache_clear()


def token(*, key: rsa.RSAPrivateKey = KEY, **changes: Any) -> str:
    session = {"azp": ORIGIN, "exp": NOW + 50, "iat": NOW - 10, "iss": ISSUER, "sub": "user_2abc"}
    return jwt.encode(session | changes, key, algorithm="RS256", headers={"kid": "ins_1"})


def in_organization(role: str = "org:member") -> str:
    return token(org_id="org_2abc", org_role=role, org_slug="acme")


def call(credential: str, **headers: str) -> auth.Caller:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return auth.authenticate({"authorization": f"Bearer {credential}"} | named, now=NOW)


# ---- everything that is refused ----


@dataclass(frozen=True)
class Refusal:
    problem: type[Problem]
    says: str
    authorization: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    arrange: Callable[[World], None] = lambda _: None


def knows(**changes: Any) -> Callable[[World], None]:
    """The database knows this of the token's user."""

    def arrange(world: World) -> None:
        world.caller = resolved(**changes)

    return arrange


def provisions(**changes: Any) -> Callable[[World], None]:
    """The database knows nobody, and provisioning comes to this."""

    def arrange(world: World) -> None:
        world.caller = UNKNOWN_USER
        world.provisioned = resolved(**changes)

    return arrange


def holds(**changes: Any) -> Callable[[World], None]:
    """The stored key is like this."""

    def arrange(world: World) -> None:
        world.key = changes

    return arrange


def named(organization: object) -> dict[str, str]:
    return {"x-organization-id": str(organization)}


SESSION = f"Bearer {token()}"
ORGANIZATION = f"Bearer {ORGANIZATION_KEY.key}"
SERVICE = f"Bearer {SERVICE_KEY.key}"
ROOT = f"Bearer {token(sub='user_root')}"
IN_ORGANIZATION = f"Bearer {in_organization()}"

REFUSALS = {
    "no header": Refusal(Unauthorized, "Authorization"),
    "an empty header": Refusal(Unauthorized, "Authorization", ""),
    "a scheme alone": Refusal(Unauthorized, "Authorization", "Bearer"),
    "a scheme and a space": Refusal(Unauthorized, "Authorization", "Bearer "),
    "basic authentication": Refusal(Unauthorized, "Authorization", "Basic dXNlcjpwYXNz"),
    "no scheme": Refusal(Unauthorized, "Authorization", token()),
    "two tokens": Refusal(Unauthorized, "Authorization", f"{SESSION} {token()}"),
    "two headers joined": Refusal(Unauthorized, "Authorization", f"{SESSION},{SESSION}"),
    "letters beyond ASCII": Refusal(Unauthorized, "Authorization", "Bearer tökèn"),
    "a letter that folds into ASCII": Refusal(Unauthorized, "Authorization", "Bearer to\u017fen"),
    "a line end": Refusal(Unauthorized, "Authorization", f"{SESSION}\n"),
    "too long a header": Refusal(Unauthorized, "Authorization", f"Bearer {'a' * 8193}"),
    "a word": Refusal(Unauthorized, "not valid", "Bearer abc"),
    "a forged token": Refusal(Unauthorized, "not valid", f"Bearer {token(key=STRANGER)}"),
    "another issuer": Refusal(Unauthorized, "not valid", f"Bearer {token(iss='https://other.example')}"),
    "an expired token": Refusal(Unauthorized, "expired", f"Bearer {token(exp=NOW - 60)}"),
    "a token of the future": Refusal(Unauthorized, "not valid yet", f"Bearer {token(nbf=NOW + 60)}"),
    "another origin": Refusal(Unauthorized, "origin", f"Bearer {token(azp='https://evil.example')}"),
    "no azp, from another origin": Refusal(
        Unauthorized, "origin", f"Bearer {token(azp='')}", {"origin": "https://evil.example"}
    ),
    "an implausible user": Refusal(Unauthorized, "not valid", f"Bearer {token(sub='robot')}"),
    "a deleted user": Refusal(Unauthorized, "deleted", SESSION, arrange=knows(user_state="deleted")),
    "a user deleted meanwhile": Refusal(
        Unauthorized, "deleted", SESSION, arrange=provisions(user_state="deleted")
    ),
    "a deleted platform admin": Refusal(Unauthorized, "deleted", ROOT, arrange=knows(user_state="deleted")),
    "a suspended user": Refusal(Forbidden, "suspended", SESSION, arrange=knows(user_state="inactive")),
    "a user suspended meanwhile": Refusal(
        Forbidden, "suspended", SESSION, arrange=provisions(user_state="inactive")
    ),
    "a suspended platform admin": Refusal(Forbidden, "suspended", ROOT, arrange=knows(user_state="inactive")),
    "a deleted organisation": Refusal(
        Forbidden, "organisation was deleted", IN_ORGANIZATION, arrange=knows(organization_state="deleted")
    ),
    "an organisation deleted meanwhile": Refusal(
        Forbidden,
        "organisation was deleted",
        IN_ORGANIZATION,
        arrange=provisions(organization_state="deleted"),
    ),
    "a membership that ended": Refusal(
        Forbidden, "not a member", IN_ORGANIZATION, arrange=provisions(member_role=None)
    ),
    "a user who names another's organisation": Refusal(Forbidden, "no member", SESSION, named(DELETED)),
    "a user who names an unknown organisation": Refusal(Forbidden, "no member", SESSION, named(NOWHERE)),
    "a user who names nothing": Refusal(Forbidden, "no member", SESSION, named("")),
    "a user who names nonsense": Refusal(Forbidden, "no member", SESSION, named("nonsense")),
    "a user who names one of Clerk's": Refusal(Forbidden, "setActive", SESSION, named(AT_CLERKS)),
    "an admin who names nonsense": Refusal(BadRequest, "UUID", ROOT, named("nonsense")),
    "an admin who names nothing": Refusal(BadRequest, "UUID", ROOT, named("")),
    "an admin who names a deleted organisation": Refusal(NotFound, "no organisation", ROOT, named(DELETED)),
    "an admin who names an unknown one": Refusal(NotFound, "no organisation", ROOT, named(NOWHERE)),
    "half a key": Refusal(Unauthorized, "API key", f"Bearer {ORGANIZATION_KEY.key[:20]}"),
    "an unknown key": Refusal(Unauthorized, "API key", f"Bearer {auth.mint_key('organization').key}"),
    "a key with another's secret": Refusal(
        Unauthorized, "API key", f"Bearer {ORGANIZATION_KEY.key[:16]}{SERVICE_KEY.key[16:]}"
    ),
    "a deleted organisation's key": Refusal(
        Unauthorized, "deleted", ORGANIZATION, arrange=holds(organization_state="deleted")
    ),
    "an organisation key that names another": Refusal(Forbidden, "its own", ORGANIZATION, named(ELSEWHERE)),
    "an organisation key that names its own": Refusal(Forbidden, "its own", ORGANIZATION, named(HOME)),
    "a service key that names nobody": Refusal(BadRequest, "X-Organization-Id", SERVICE),
    "a service key that names nonsense": Refusal(BadRequest, "UUID", SERVICE, named("nonsense")),
    "a service key with a URN": Refusal(BadRequest, "UUID", SERVICE, named(f"urn:uuid:{HOME}")),
    "a service key with braces": Refusal(BadRequest, "UUID", SERVICE, named(f"{{{HOME}}}")),
    "a service key with two ids": Refusal(BadRequest, "UUID", SERVICE, named(f"{HOME},{ELSEWHERE}")),
    "a service key and a deleted organisation": Refusal(NotFound, "no organisation", SERVICE, named(DELETED)),
    "a service key and an unknown one": Refusal(NotFound, "no organisation", SERVICE, named(NOWHERE)),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_request_is_refused_with(world: World, refusal: Refusal) -> None:
    refusal.arrange(world)
    headers = dict(refusal.headers)
    if refusal.authorization is not None:
        headers["authorization"] = refusal.authorization
    with pytest.raises(refusal.problem, match=re.escape(refusal.says)) as raised:
        auth.authenticate(headers, now=NOW)
    assert type(raised.value) is refusal.problem


def test_a_forged_token_never_reaches_the_database(world: World) -> None:
    for forged in (token(key=STRANGER), token(exp=NOW - 60), "abc", "bp_abc"):
        with pytest.raises(Unauthorized):
            call(forged)
    assert world.calls == []


def test_a_refused_user_is_not_provisioned(world: World) -> None:
    for state in ("deleted", "inactive"):
        world.caller = resolved(user_state=state, organization_id=None, member_role=None)
        with pytest.raises(Problem):
            call(token())
    assert world.provisionings == []


credentials = st.text() | st.from_regex(r"(bearer|Bearer|Basic) +\S*", fullmatch=True)
shaped = st.from_regex(r"Bearer (bp_)?[A-Za-z0-9_.-]{0,80}", fullmatch=True)


@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(credentials | shaped, st.none() | st.text())
def test_any_authorization_header_is_a_problem_at_worst(
    world: World, authorization: str, organization: str | None
) -> None:
    headers = {"authorization": authorization}
    if organization is not None:
        headers["x-organization-id"] = organization
    with pytest.raises(Problem):
        auth.authenticate(headers, now=NOW)
    assert world.provisionings == []


@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text())
def test_any_organisation_header_is_a_problem_at_worst(world: World, organization: str) -> None:
    assert world.provisionings == []
    for credential in (SERVICE_KEY.key, token(sub="user_root"), ORGANIZATION_KEY.key, token()):
        with pytest.raises(Problem):
            call(credential, x_organization_id=organization)


# ---- who a caller is ----


def test_a_user_acts_in_his_personal_organisation_as_its_owner(world: World) -> None:
    caller = call(token())
    assert world.calls == [{"user": "user_2abc", "organization": None, "issued_at": ISSUED_AT}]
    assert caller == auth.Caller(
        kind="user",
        organization_id=HOME,
        user_id=USER,
        key_id=None,
        role="owner",
        scopes=auth.SCOPES_OF_ROLE["owner"],
        is_platform_admin=False,
    )
    assert caller.actor == f"user:{USER}"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_may_be_written_in_any_case(world: World, scheme: str) -> None:
    assert auth.authenticate({"authorization": f"{scheme} {token()}"}, now=NOW).user_id == USER
    assert len(world.calls) == 1


def test_a_role_that_changed_after_the_token_was_issued_counts_instead_of_the_tokens(world: World) -> None:
    world.caller = resolved(member_role="viewer", role_is_newer=True)
    assert call(token(org_id="org_2abc", org_role="org:admin")).role == "viewer"


@pytest.mark.parametrize(
    ("claimed", "stored", "role"),
    [
        ("org:admin", "member", "admin"),
        ("org:member", "admin", "member"),
        ("org:accountant", "admin", "viewer"),
        ("org:member", "owner", "owner"),
        ("org:accountant", "owner", "owner"),
        ("", "editor", "editor"),
    ],
)
def test_the_tokens_role_is_fresher_than_the_stored_one_unless_that_is_the_owners(
    world: World, claimed: str, stored: str, role: auth.Role
) -> None:
    world.caller = resolved(member_role=stored)
    caller = call(in_organization(claimed))
    assert world.calls == [{"user": "user_2abc", "organization": "org_2abc", "issued_at": ISSUED_AT}]
    assert (caller.role, caller.scopes) == (role, auth.SCOPES_OF_ROLE[role])


def test_an_unknown_user_is_provisioned_with_what_his_token_says(world: World) -> None:
    world.caller = UNKNOWN_USER
    caller = call(token(email="ada@example.com", name="Ada", org_id="org_2abc", org_role="org:admin"))
    assert world.provisionings == [
        {
            "clerk_user_id": "user_2abc",
            "email": "ada@example.com",
            "name": "Ada",
            "clerk_org_id": "org_2abc",
            "org_slug": None,
            "org_role": "admin",
            "issued_at": ISSUED_AT,
        }
    ]
    assert (caller.user_id, caller.organization_id, caller.role) == (USER, HOME, "admin")


@pytest.mark.parametrize(
    "known",
    [
        UNKNOWN_USER,
        resolved(organization_id=None, organization_state="unknown", member_role=None),
        resolved(member_role=None),
    ],
    ids=["no user", "no organisation", "no membership"],
)
def test_what_the_webhooks_have_not_brought_yet_is_provisioned(world: World, known: dict[str, Any]) -> None:
    world.caller = known
    assert call(in_organization()).role == "member"
    assert len(world.provisionings) == 1


def test_a_known_member_is_not_provisioned_again(world: World) -> None:
    call(in_organization())
    assert world.provisionings == []


def test_an_organisation_key_acts_for_its_organisation(world: World) -> None:
    caller = call(ORGANIZATION_KEY.key)
    assert asdict(caller) == {
        "kind": "organization_key",
        "organization_id": HOME,
        "user_id": None,
        "key_id": KEY_ID,
        "role": None,
        "scopes": {"read", "credits:spend"},
        "is_platform_admin": False,
    }
    assert caller.actor == f"key:{KEY_ID}"
    assert len(world.calls) == 1


def test_a_service_key_acts_for_the_organisation_it_names(world: World) -> None:
    caller = call(SERVICE_KEY.key, x_organization_id=str(ELSEWHERE).upper())
    assert (caller.kind, caller.organization_id, caller.key_id) == ("service_key", ELSEWHERE, KEY_ID)
    assert caller.scopes == {"read", "credits:spend", "credits:settle"}
    assert not caller.is_platform_admin
    assert len(world.calls) == 2


@pytest.mark.parametrize(
    ("subject", "platform_role", "is_admin"),
    [
        ("user_root", "user", True),
        ("user_other", "user", True),
        ("user_2abc", "admin", True),
        ("user_2abc", "super_admin", True),
        ("user_2abc", "user", False),
        ("user_roo", "user", False),
    ],
)
def test_a_platform_admin_is_stored_or_listed(
    world: World, subject: str, platform_role: str, is_admin: bool
) -> None:
    world.caller = resolved(platform_role=platform_role)
    caller = call(token(sub=subject))
    assert caller.is_platform_admin is is_admin
    assert ("admin" in caller.scopes) is is_admin
    assert caller.role == "owner"


def test_a_user_acts_in_an_organisation_that_he_names_as_what_he_is_there(world: World) -> None:
    world.caller = resolved(member_role="owner")
    there = call(token(), x_organization_id=str(ELSEWHERE).upper())
    assert (there.organization_id, there.role) == (ELSEWHERE, "editor")
    assert there.scopes == auth.SCOPES_OF_ROLE["editor"]
    assert len(world.calls) == 2
    assert call(token(), x_organization_id=str(HOME)) == call(token())
    member = auth.authenticate(
        {"authorization": SESSION, "x-organization-id": "nonsense"}, path_organization=str(ELSEWHERE), now=NOW
    )
    assert member == there  # the path counts before the header


@pytest.mark.parametrize(
    "credential", [SESSION, ROOT, ORGANIZATION, SERVICE], ids=["user", "root", "key", "server"]
)
def test_a_path_that_names_nothing_of_the_callers_is_no_place(world: World, credential: str) -> None:
    for path in (str(NOWHERE), str(DELETED), "nonsense", ""):
        with pytest.raises(NotFound, match="no such organisation"):
            auth.authenticate({"authorization": credential}, path_organization=path, now=NOW)
    headers = {"authorization": credential}
    if credential is not SESSION:
        assert auth.authenticate(headers, path_organization=str(HOME), now=NOW).organization_id == HOME


def test_a_platform_admin_may_do_everything_wherever_he_looks(world: World) -> None:
    visiting = call(token(sub="user_root"), x_organization_id=str(ELSEWHERE))
    assert (visiting.organization_id, visiting.user_id, visiting.role) == (ELSEWHERE, USER, None)
    assert visiting.scopes == SCOPES_OF_PLATFORM_ADMIN
    assert call(token(sub="user_root"), x_organization_id=str(HOME)).role == "owner"
    assert len(world.calls) == 3  # nothing to look up of his own


def test_a_platform_admin_is_provisioned_like_anyone(world: World) -> None:
    world.caller = UNKNOWN_USER
    assert call(token(sub="user_root")).is_platform_admin
    assert len(world.provisionings) == 1


# ---- what a caller may do ----


def test_a_scope_one_lacks_is_named_in_the_refusal(world: World) -> None:
    caller = call(in_organization("org:viewer"))
    auth.require(caller, "read")
    with pytest.raises(Forbidden, match=r"`credits:spend`.*role"):
        auth.require(caller, "credits:spend")
    with pytest.raises(Forbidden, match=r"`projects:write`.*API key"):
        auth.require(call(ORGANIZATION_KEY.key), "projects:write")
    assert len(world.calls) == 2


def test_each_role_may_do_what_the_one_below_may() -> None:
    roles: tuple[auth.Role, ...] = ("viewer", "member", "admin", "owner")
    scopes = [auth.SCOPES_OF_ROLE[role] for role in roles]
    assert all(lower < higher for lower, higher in pairwise(scopes))
    assert auth.SCOPES_OF_ROLE["member"] == auth.SCOPES_OF_ROLE["editor"]


def test_no_role_settles_refunds_or_administers() -> None:
    assert not any(scopes & (SERVER_SCOPES | {"admin"}) for scopes in auth.SCOPES_OF_ROLE.values())


def test_keys_hold_what_the_contract_lists() -> None:
    listed = {
        "read",
        "projects:write",
        "files:write",
        "deployments:write",
        "credits:spend",
        "analytics:write",
    }
    assert SCOPES_OF_KEY["organization"] == listed
    assert SCOPES_OF_KEY["service"] == listed | {"credits:settle", "credits:refund", "generations:finish"}
