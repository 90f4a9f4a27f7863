"""`make send E=events/….json`: send a sample to the running stack, signed as its sender signs."""

import argparse
import base64
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

from local import running, sample
from local.refusal import Refusal, exits
from local.sample import Sample
from local.token import mint

TIMEOUT = 60  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="make send", description=__doc__)
    parser.add_argument("event", nargs="?", default="", help="a file as events/README.md describes")
    parser.add_argument("--id", default="", help="instead of a new id: twice the same is a duplicate")
    arguments = parser.parse_args()
    if not arguments.event:
        raise Refusal("which event? `make send E=events/stripe_webhook.json`")
    stack = running.find()
    event = sample.read(Path(arguments.event), arguments.id or None)
    if event.path is None:
        raise Refusal(
            f"{arguments.event} is no request: `make invoke F=… E={arguments.event}` invokes with it."
        )
    status, answer = send(stack, event)
    print(f"{event.method} {event.path} → {status}")
    print(_readable(answer))
    return 0 if status < 400 else 1  # noqa: PLR2004  the first status of an error


def send(stack: running.Stack, event: Sample) -> tuple[int, bytes]:
    """The answer's status and body. Raises Refusal where nothing answers."""
    body = b"" if event.body is None else json.dumps(event.body, separators=(",", ":")).encode()
    request = urllib.request.Request(  # noqa: S310  the stack's own address
        f"{stack.api_url}{event.path}",
        data=body or None,
        headers={"content-type": "application/json", **(event.headers or {})} | signature(stack, event, body),
        method=event.method,
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        raise Refusal(f"{stack.api_url} does not answer ({error}). Is `make dev` still running?") from None


def signature(stack: running.Stack, event: Sample, body: bytes) -> dict[str, str]:
    """The headers by which the route knows its sender."""
    now = int(time.time())
    if event.path == "/webhooks/stripe":
        return {"stripe-signature": stripe_signature(stack.stripe_webhook_secret, body, now)}
    if event.path == "/webhooks/clerk":
        message = (event.headers or {}).get("svix-id", "msg_sample")
        return {
            "svix-timestamp": str(now),
            "svix-signature": svix_signature(stack.clerk_webhook_secret, message, body, now),
        }
    if event.path and event.path.startswith("/v1/"):
        return {"authorization": f"Bearer {mint(stack, event.user)}"}
    return {}


def stripe_signature(secret: str, body: bytes, now: int) -> str:
    """Scheme v1, docs.stripe.com/webhooks#verify-manually."""
    digest = hmac.new(secret.encode(), b"%d.%s" % (now, body), hashlib.sha256).hexdigest()
    return f"t={now},v1={digest}"


def svix_signature(secret: str, message: str, body: bytes, now: int) -> str:
    """docs.svix.com/receiving/verifying-payloads/how-manual."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, b"%s.%d.%s" % (message.encode(), now, body), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _readable(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


if __name__ == "__main__":
    exits(main)
