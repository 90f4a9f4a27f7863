"""Every operation of the OpenAPI document, asked for by everybody: as the table of scopes says, no more."""

from tests.contract import OPERATIONS, Operation
from tests.senders import Answer
from tests.world import Caller, World

from backplane.scopes import SCOPES_OF_KEY, SCOPES_OF_ROLE

API = [each for each in OPERATIONS if each.path.startswith("/v1/")]
NOBODY = Caller("nobody", None)
# What takes more than a scope, of people.
OF_MANAGERS = {
    "DELETE /v1/projects/<project_id>",
    "POST /v1/projects/<project_id>/restore",
    "POST /v1/projects/<project_id>/shares",
    "DELETE /v1/projects/<project_id>/shares/<share_id>",
}
# What takes another scope beside the route's.
SECOND_SCOPE = {
    "PATCH /v1/projects/<project_id>": "projects:write",
    "DELETE /v1/organizations/<organization_id>/members/<user_id>": "members:manage",  # of somebody else
    "POST /v1/integrations/supabase/connect": "account:manage",  # a person's consent
    "POST /v1/integrations/supabase/callback": "account:manage",
}
# What is tried on another organisation than the world's, which it ends: keys find none there.
ELSEWHERE = {"DELETE /v1/organizations/<organization_id>"}
# What does not answer 2xx in the world as it is, and why.
OTHERWISE: dict[str, int] = {
    "POST /v1/integrations/supabase/connect": 503,  # no OAuth app is configured
    "POST /v1/integrations/supabase/callback": 400,  # nothing was begun
    "GET /v1/integrations/supabase/projects": 404,  # nothing is connected
}
# What a path names that is nobody's own: the stranger is told the same as everybody.
NOT_OF_AN_ORGANIZATION: set[str] = {"PUT /v1/integrations/<integration_type>"}


def test_each_role_and_each_key_may_what_the_table_says(world: World) -> None:
    wrong = []
    for operation in sorted(API, key=lambda each: each.told["operationId"]):
        for caller in (NOBODY, *world.people, *world.keys.values(), world.service, world.root):
            allowed = may(operation, caller)
            answer = world.send(operation, caller, fresh=allowed and operation.method != "GET")
            expected = OTHERWISE.get(operation.route) if allowed else None
            if not is_as_it_should(operation, caller, answer, allowed=allowed, otherwise=expected):
                should = "may" if allowed else "may not"
                wrong.append(f"{caller.name} {should} {operation.route}: {answer.status} {answer.body}")
    advice = "The table is scopes.py; OF_MANAGERS, SECOND_SCOPE and OTHERWISE say what differs."
    assert not wrong, "\n".join([*wrong, advice])


def may(operation: Operation, caller: Caller) -> bool:
    scopes = {operation.scope, SECOND_SCOPE.get(operation.route)} - {None}
    if not scopes or caller.name == "platform admin":
        return True
    if caller.name == "service key":
        return scopes <= SCOPES_OF_KEY["service"]
    if caller.name.startswith("key of "):
        return {caller.name.removeprefix("key of ")} == scopes
    if operation.route in OF_MANAGERS and caller.name not in {"admin", "owner"}:
        return False
    return any(caller.name == role and scopes <= given for role, given in SCOPES_OF_ROLE.items())


def is_as_it_should(
    operation: Operation, caller: Caller, answer: Answer, *, allowed: bool, otherwise: int | None
) -> bool:
    if allowed:
        return answer.status == otherwise if otherwise else 200 <= answer.status < 300
    if caller is NOBODY:
        return (answer.status, answer.body["code"]) == (401, "unauthorized")
    if operation.route in ELSEWHERE and "key" in caller.name:
        return answer.status == 404
    return (answer.status, answer.body["code"]) == (403, "forbidden")


def test_a_stranger_hears_of_no_row_that_there_is_nothing(world: World) -> None:
    wrong = []
    for operation in API:
        if "{" not in operation.path or operation.route in NOT_OF_AN_ORGANIZATION:
            continue
        real = world.made(operation)
        for stranger in world.strangers:
            answer = world.send(operation, stranger)
            told = {str(value) for value in real.names.values() if len(str(value)) > 8}
            refused = {403, 404} if operation.scope not in SCOPES_OF_ROLE["owner"] else {404}
            if operation.path.startswith("/v1/organizations/"):
                refused = {404}
            elif stranger.name.endswith("key") and operation.scope not in SCOPES_OF_KEY["organization"]:
                refused = {403}
            if answer.status not in refused or any(value in str(answer.body) for value in told):
                wrong.append(f"{stranger.name}: {operation.route}: {answer.status} {answer.body}")
    assert not wrong, "\n".join(wrong)
