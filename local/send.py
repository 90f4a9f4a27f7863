"""`make send E=events/….json`: send a sample to the running stack, signed as its sender signs."""

import argparse
import base64
import hashlib
import hmac
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from local import assignment, running, sample
from local.refusal import Refusal, exits
from local.sample import Sample
from local.token import mint, promote

TIMEOUT = 60  # seconds
MAX_AT_ONCE = 1000

# The status that a forged request must get, by the route's prefix.
REFUSED = {"/webhooks/": 400, "/v1/": 401}


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def kind(self) -> str:
        """Its status, and what it says became of the request."""
        try:
            told = json.loads(self.body)
        except ValueError:
            return str(self.status)
        word = told.get("code") or told.get("status") if isinstance(told, dict) else None
        return f"{self.status} {word}" if isinstance(word, str) else str(self.status)


def main() -> int:
    arguments = _arguments()
    if not arguments.event:
        raise Refusal("which event? `make send E=events/stripe_webhook.json`")
    stack = running.find()
    event = sample.read(Path(arguments.event), arguments.id or None)
    if event.path is None:
        raise Refusal(
            f"{arguments.event} is no request: `make invoke F=… E={arguments.event}` invokes with it."
        )
    event = prepared(stack, event, Path(arguments.event).parent)
    for each in (one for text in arguments.set for one in assignment.parse(text)):
        each.apply(event.body)
    expected = _refusal(event) if arguments.forge else None
    answers = send(stack, event, arguments.times, forged=arguments.forge)
    print(f"{event.method} {event.path} → {_counted(answers)}")
    print(_readable(answers[0].body))
    if expected is not None:
        return _judge_forgery(answers, expected)
    return 0 if all(each.status < 400 for each in answers) else 1  # noqa: PLR2004  the first status of an error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make send", description=__doc__)
    parser.add_argument("event", nargs="?", default="", help="a file as events/README.md describes")
    parser.add_argument("--id", default="", help="instead of a new id: twice the same is a duplicate")
    parser.add_argument("--set", default=[], action="append", help="fields to change: path=value, …")
    parser.add_argument("--times", type=_count, default=1, help="so many of the same event at once")
    parser.add_argument("--forge", action="store_true", help="with a signature that is not the sender's")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_AT_ONCE:
        raise Refusal(f"N is a number from 1 to {MAX_AT_ONCE}, not {text}.")
    return int(text)


def prepared(stack: running.Stack, event: Sample, folder: Path) -> Sample:
    """The sample once what it needs is there: its user's platform role, the row that its path names.

    Raises Refusal where that can't be made.
    """
    if event.platform:
        promote(stack, event.user, event.platform)
    if event.after is None or event.path is None:
        return event
    before = folder / event.after
    [first] = send(stack, prepared(stack, sample.read(before), before.parent))
    if first.status >= 400:  # noqa: PLR2004  the first status of an error
        raise Refusal(
            f"{event.after} must come first, and is refused ({first.kind}): {_readable(first.body)}"
        )
    if "{id}" not in event.path:
        return event
    return replace(event, path=event.path.replace("{id}", json.loads(first.body)["id"]))


def send(stack: running.Stack, event: Sample, times: int = 1, *, forged: bool = False) -> list[Answer]:
    """Send the event, all of them at the same moment. Raises Refusal where nothing answers."""
    body = b"" if event.body is None else json.dumps(event.body, separators=(",", ":")).encode()
    headers = {"content-type": "application/json", **(event.headers or {})}
    headers |= signature(stack, event, body, forged=forged)
    together = threading.Barrier(times)

    def one(_: int) -> Answer:
        together.wait()
        return _send(stack, event, body, headers)

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(one, range(times)))


def _send(stack: running.Stack, event: Sample, body: bytes, headers: dict[str, str]) -> Answer:
    request = urllib.request.Request(  # noqa: S310  the stack's own address
        f"{stack.api_url}{event.path}", data=body or None, headers=headers, method=event.method
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read())
    except OSError as error:
        raise Refusal(f"{stack.api_url} does not answer ({error}). Is `make dev` still running?") from None


def signature(stack: running.Stack, event: Sample, body: bytes, *, forged: bool = False) -> dict[str, str]:
    """The headers by which the route knows its sender; forged, they are made without his secret."""
    now = int(time.time())
    if event.path == "/webhooks/stripe":
        secret = "whsec_forged" if forged else stack.stripe_webhook_secret
        return {"stripe-signature": stripe_signature(secret, body, now)}
    if event.path == "/webhooks/clerk":
        message = (event.headers or {}).get("svix-id", "msg_sample")
        secret = base64.b64encode(b"forged").decode() if forged else stack.clerk_webhook_secret
        return {
            "svix-timestamp": str(now),
            "svix-signature": svix_signature(secret, message, body, now),
        }
    if event.path and event.path.startswith("/webhooks/"):
        secret = "a-forged-webhook-secret" if forged or event.secret is None else event.secret
        return callback_signature(event.path.split("/")[2], secret, body)
    if event.path and event.path.startswith("/v1/"):
        token = mint(stack, event.user)
        return {"authorization": f"Bearer {_tampered(token) if forged else token}"}
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


def callback_signature(sender: str, secret: str, body: bytes) -> dict[str, str]:
    """How Expo, Vercel and GitHub sign: HMAC of the body in hexadecimal digits."""
    if sender == "github":
        return {"x-hub-signature-256": f"sha256={hmac.new(secret.encode(), body, 'sha256').hexdigest()}"}
    digest = hmac.new(secret.encode(), body, "sha1").hexdigest()
    return {"x-vercel-signature": digest} if sender == "vercel" else {"expo-signature": f"sha1={digest}"}


def _tampered(token: str) -> str:
    """The same token with the first character of its signature changed."""
    signed, _, mark = token.rpartition(".")
    return f"{signed}.{'B' if mark.startswith('A') else 'A'}{mark[1:]}"


def _refusal(event: Sample) -> int:
    for prefix, status in REFUSED.items():
        if event.path and event.path.startswith(prefix) and event.path != "/v1/plans":
            return status
    raise Refusal(f"{event.path} is open to everyone: there is no signature to forge.")


def _judge_forgery(answers: Sequence[Answer], expected: int) -> int:
    wrong = [each for each in answers if each.status != expected]
    if wrong:
        print(f"A forged signature must be answered {expected}, and {len(wrong)} of {len(answers)} were not.")
        return 1
    print(f"Refused, as a forged signature must be ({expected}).")
    return 0


def _counted(answers: Sequence[Answer]) -> str:
    if len(answers) == 1:
        return str(answers[0].status)
    kinds = Counter(each.kind for each in answers).most_common()
    return f"{len(answers)} at once: {', '.join(f'{count} answered {kind}' for kind, count in kinds)}"


def _readable(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body.decode(errors="replace")


if __name__ == "__main__":
    exits(main)
