"""`make -s token USER=user_abc`: a session token for the running stack, as Clerk would make it."""  # noqa: A005  only ever local.token

import argparse
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

import psycopg

from local import checkout, running
from local.issuer import ORIGINS, SigningKey, session_claims
from local.refusal import Refusal, exits

PLATFORM_ROLES = ("user", "admin", "super_admin")
TIMEOUT = 60  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="make token", description=__doc__)
    parser.add_argument("user", help="Clerk's id of the user, user_…")
    parser.add_argument("--org", default="", help="Clerk's id of the active organisation, org_…")
    parser.add_argument("--role", default="", help="his role in it, Clerk's: admin, member, …")
    parser.add_argument("--platform", default="", help=f"make him a {' or '.join(PLATFORM_ROLES[1:])}")
    arguments = parser.parse_args()
    if not arguments.user:
        raise Refusal("whose token? `make -s token USER=user_demo`")
    if arguments.role and not arguments.org:
        raise Refusal("ROLE is a role in an organisation: name it, `ORG=org_…`.")
    if arguments.platform and arguments.platform not in PLATFORM_ROLES:
        raise Refusal(f"PLATFORM is one of {', '.join(PLATFORM_ROLES)}, not {arguments.platform}.")
    stack = running.find()
    if arguments.platform:
        promote(stack, arguments.user, arguments.platform)
    print(mint(stack, arguments.user, arguments.org or None, arguments.role or "admin"))


def mint(stack: running.Stack, user: str, organization: str | None = None, role: str = "admin") -> str:
    """Raises Refusal where the stack trusts another issuer."""
    if "CLERK_ISSUER" in checkout.overrides() or "CLERK_JWT_KEY" in checkout.overrides():
        raise Refusal(
            f"this stack trusts {stack.issuer}, whose key is not here: take a token from your app, "
            f"or take CLERK_ISSUER and CLERK_JWT_KEY out of .env and start the stack again."
        )
    claims = session_claims(
        user,
        issuer=stack.issuer,
        origin=ORIGINS[0],
        now=int(time.time()),
        organization=organization,
        role=role,
    )
    return SigningKey(Path(stack.signing_key_path)).sign(claims)


def promote(stack: running.Stack, user: str, role: str) -> None:
    """Give the user a platform role, making him first where he is unknown. Raises Refusal."""
    request = urllib.request.Request(  # noqa: S310  the stack's own address
        f"{stack.api_url}/v1/me", headers={"authorization": f"Bearer {mint(stack, user)}"}
    )
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise Refusal(f"{user} can't be provisioned: {error.read().decode(errors='replace')}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Refusal(f"{stack.api_url} does not answer ({error}). Is `make dev` still running?") from None
    with psycopg.connect(stack.admin_database_url) as connection:
        connection.execute(
            """
            UPDATE identity.users
            SET role = %(role)s::identity.platform_role
            WHERE clerk_id = %(user)s
            """,
            {"role": role, "user": user},
        )


if __name__ == "__main__":
    exits(main)
