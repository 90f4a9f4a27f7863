"""A Stripe API on loopback, for the SDK to talk to: it keeps state and refuses what Stripe refuses.

    with FakeStripe() as fake:
        fake.subscriptions["sub_1"] = subscription()
        fake.trouble.append("rate_limit")   # the next request is refused; "error" and "hang" too

Shapes and errors follow docs.stripe.com/api. What is not here answers 404, as an unknown path does there.
"""

import itertools
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

KEY = "sk_test_fake"
KEPT = 30 * 86_400  # seconds that events are listed

# The statuses in the order of a life.
LIFE = (
    *("incomplete", "trialing", "active", "past_due", "unpaid", "paused"),
    *("incomplete_expired", "canceled"),
)

Params = dict[str, str]
Json = dict[str, Any]


class Refusal(Exception):  # noqa: N818  an answer
    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"type": kind, "message": message} | {
            name: value for name, value in (("code", code), ("param", param)) if value is not None
        }


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    params: Params
    idempotency_key: str | None


@dataclass
class FakeStripe:
    key: str = KEY
    customers: dict[str, Json] = field(default_factory=dict)
    subscriptions: dict[str, Json] = field(default_factory=dict)
    sessions: dict[str, Json] = field(default_factory=dict)
    line_items: dict[str, list[Json]] = field(default_factory=dict)  # by session
    invoices: dict[str, Json] = field(default_factory=dict)
    events: dict[str, Json] = field(default_factory=dict)
    prices: dict[str, Json] = field(default_factory=dict)  # {"active", "recurring"}
    trouble: list[str | None] = field(default_factory=list)  # what befalls the next requests
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._newness: dict[str, tuple[Any, ...]] = {}  # of the subscriptions that were learnt
        self._answers: dict[str, tuple[Params, str, Json]] = {}  # by idempotency key
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._serve(self, "GET")

            def do_POST(self) -> None:
                fake._serve(self, "POST")

            def do_DELETE(self) -> None:
                fake._serve(self, "DELETE")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # whoever hangs
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_customer(self, customer_id: str, **fields: Any) -> None:
        self.customers[customer_id] = {"id": customer_id, "object": "customer", "deleted": False} | fields

    def add_price(self, price_id: str, *, recurring: bool = True, active: bool = True) -> None:
        self.prices[price_id] = {"recurring": recurring, "active": active}

    def learn(self, event: Mapping[str, Any]) -> None:
        """What an event tells of a subscription, unless a newer one told it already: it has happened, however
        late the event comes.
        """
        told = event["data"]["object"]
        if not event["type"].startswith("customer.subscription.") or not isinstance(told, dict):
            return
        over = event["type"].endswith(".deleted") or told["status"] == "canceled"
        kind = {"created": 0, "deleted": 2}.get(event["type"].rpartition(".")[2], 1)
        newness = (over, event["created"], kind, LIFE.index(told["status"]), event["id"])
        with self._lock:
            if newness > self._newness.get(told["id"], ()):
                self._newness[told["id"]] = newness
                self.subscriptions[told["id"]] = told | ({"status": "canceled"} if over else {})

    def paths(self, method: str = "GET") -> list[str]:
        return [asked.path for asked in self.asked if asked.method == method]

    # ---- a request ----

    def _serve(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        split = urlsplit(handler.path)
        length = int(handler.headers.get("content-length") or 0)
        source = handler.rfile.read(length).decode() if method == "POST" else split.query
        params = dict(parse_qsl(source, keep_blank_values=True))
        idempotency_key = handler.headers.get("idempotency-key")
        with self._lock:
            self.asked.append(Asked(method, split.path, params, idempotency_key))
            trouble = self.trouble.pop(0) if self.trouble else None
        if trouble == "hang":
            self._over.wait(120)
            handler.close_connection = True
            return
        status, replayed = 200, False
        body: Json = {}
        try:
            self._befall(trouble)
            self._admit(handler.headers.get("authorization"))
            with self._lock:
                body, replayed = self._once(method, split.path, params, idempotency_key)
        except Refusal as refusal:
            status, body = refusal.status, {"error": refusal.error}
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.send_header("request-id", f"req_{len(self.asked)}")
        if replayed:
            handler.send_header("idempotent-replayed", "true")
        handler.end_headers()
        handler.wfile.write(data)

    def _befall(self, trouble: str | None) -> None:
        match trouble:
            case "rate_limit":
                raise Refusal(429, "Too many requests", code="rate_limit")
            case "error":
                raise Refusal(500, "Sorry! There was an error while talking to Stripe.", kind="api_error")
            case None:
                return
        raise AssertionError(trouble)

    def _admit(self, authorization: str | None) -> None:
        if authorization != f"Bearer {self.key}":
            raise Refusal(401, "Invalid API Key provided: sk_test_****", code=None)

    def _once(self, method: str, path: str, params: Params, key: str | None) -> tuple[Json, bool]:
        if method == "GET":
            return self._get(path, params), False
        if method == "DELETE":
            return self._delete(path), False
        if key is not None and key in self._answers:
            first_params, first_path, answer = self._answers[key]
            if (first_params, first_path) != (params, path):
                raise Refusal(
                    400,
                    f"Keys for idempotent requests can only be used with the same parameters. '{key}'",
                    kind="idempotency_error",
                )
            return answer, True
        answer = self._post(path, params)
        if key is not None:
            self._answers[key] = (params, path, answer)
        return answer, False

    def _delete(self, path: str) -> Json:
        match [unquote(part) for part in path.removeprefix("/v1/").split("/")]:
            case ["subscriptions", identifier]:
                state = self.subscriptions.get(identifier)
                if state is None or state["status"] == "canceled":
                    message = f"No such subscription: '{identifier}'"
                    raise Refusal(404, message, code="resource_missing", param="id")
                self.subscriptions[identifier] = state | {"status": "canceled"}
                return self.subscriptions[identifier]
        raise Refusal(404, f"Unrecognized request URL (DELETE: {path}).", code=None)

    # ---- reading ----

    def _get(self, path: str, params: Params) -> Json:
        match [unquote(part) for part in path.removeprefix("/v1/").split("/")]:
            case ["subscriptions"]:
                live = [
                    s
                    for s in self.subscriptions.values()
                    if params.get("status") == "all" or s["status"] != "canceled"
                ]
                return _listed(_of_customer(live, params), params, "/v1/subscriptions", {"status"})
            case ["subscriptions", subscription_id]:
                return _found(self.subscriptions, subscription_id, "subscription")
            case ["customers", customer_id]:
                return _found(self.customers, customer_id, "customer")
            case ["invoices"]:
                wanted = [
                    i for i in self.invoices.values() if params.get("status") in {None, i.get("status")}
                ]
                return _listed(_of_customer(wanted, params), params, path, {"status"})
            case ["checkout", "sessions"]:
                return _listed(_of_customer(list(self.sessions.values()), params), params, path, {"status"})
            case ["checkout", "sessions", session_id]:
                session = _found(self.sessions, session_id, "checkout.session")
                if "line_items" not in params.values():
                    return session
                items = self.line_items.get(session_id, [])[:10]
                return session | {"line_items": {"object": "list", "data": items}}
            case ["checkout", "sessions", session_id, "line_items"]:
                _found(self.sessions, session_id, "checkout.session")
                return _listed(self.line_items.get(session_id, []), params, path, set())
            case ["events"]:
                return self._events(params)
            case _:
                raise _unknown(path)

    def _events(self, params: Params) -> Json:
        oldest = max(int(params.get("created[gte]", 0)), int(time.time()) - KEPT)
        newest = int(params.get("created[lte]", 2**40))
        kept = [event for event in self.events.values() if oldest <= event["created"] <= newest]
        kept.sort(key=lambda event: event["created"], reverse=True)
        return _listed(kept, params, "/v1/events", {"created[gte]", "created[lte]", "type"})

    # ---- writing ----

    def _post(self, path: str, params: Params) -> Json:
        match path:
            case "/v1/checkout/sessions":
                return self._make_session(params)
            case "/v1/billing_portal/sessions":
                _known(params, {"customer", "return_url"})
                self._named_customer(_required(params, "customer"))
                _url(params, "return_url")
                number = next(self._numbers)
                return {
                    "id": f"bps_{number}",
                    "object": "billing_portal.session",
                    "customer": params["customer"],
                    "url": f"https://billing.stripe.com/p/session/{number}",
                }
            case _:
                raise _unknown(path)

    def _make_session(self, params: Params) -> Json:
        known = {"mode", "success_url", "cancel_url", "customer", "client_reference_id", "customer_creation"}
        patterns = (
            r"line_items\[0\]\[(price|quantity)\]|(subscription_data\[|payment_intent_data\[)?metadata.*"
        )
        _known({name: "" for name in params if not re.fullmatch(patterns, name)}, known)
        mode = _required(params, "mode")
        if mode not in {"payment", "subscription", "setup"}:
            raise Refusal(400, "Invalid mode", param="mode")
        for name in ("success_url", "cancel_url"):
            _url(params, name)
        if customer := params.get("customer"):
            self._named_customer(customer)
            if "customer_creation" in params:
                raise Refusal(400, "`customer_creation` with `customer`", param="customer_creation")
        if mode == "subscription" and "customer_creation" in params:
            raise Refusal(400, "`customer_creation` in `payment` mode only", param="customer_creation")
        if mode == "payment" and any(name.startswith("subscription_data") for name in params):
            raise Refusal(400, "`subscription_data` in `subscription` mode only", param="subscription_data")
        price_id = _required(params, "line_items[0][price]")
        self._sold_price(price_id, mode)
        session = {
            "id": f"cs_test_{next(self._numbers)}",
            "object": "checkout.session",
            "mode": mode,
            "status": "open",
            "payment_status": "unpaid",
            "customer": customer,
            "client_reference_id": params.get("client_reference_id"),
            "metadata": {
                match[1]: value
                for name, value in params.items()
                if (match := re.fullmatch(r"metadata\[(\w+)\]", name))
            },
            "subscription": None,
            "payment_intent": None,
            "invoice": None,
        }
        session["url"] = f"https://checkout.stripe.com/c/pay/{session['id']}"
        self.sessions[str(session["id"])] = session
        quantity = int(params.get("line_items[0][quantity]", 1))
        self.line_items[str(session["id"])] = [
            {"id": f"li_{next(self._numbers)}", "price": {"id": price_id}, "quantity": quantity}
        ]
        return session

    def _sold_price(self, price_id: str, mode: str) -> None:
        param = "line_items[0][price]"
        price = self.prices.get(price_id)
        if price is None:
            raise Refusal(400, f"No such price: '{price_id}'", code="resource_missing", param=param)
        if not price["active"]:
            raise Refusal(
                400, f"The price specified is inactive: {price_id}", code="price_inactive", param=param
            )
        if price["recurring"] is not (mode == "subscription"):
            raise Refusal(400, f"The price {price_id} does not go with `{mode}` mode", param=param)

    def _named_customer(self, customer_id: str) -> None:
        customer = self.customers.get(customer_id)
        if customer is None or customer["deleted"]:
            raise Refusal(
                400, f"No such customer: '{customer_id}'", code="resource_missing", param="customer"
            )


def _found(objects: dict[str, Json], object_id: str, kind: str) -> Json:
    if object_id not in objects:
        raise Refusal(404, f"No such {kind}: '{object_id}'", code="resource_missing", param="id")
    return objects[object_id]


def _of_customer(objects: list[Json], params: Params) -> list[Json]:
    return [each for each in objects if params.get("customer") in {None, each.get("customer")}]


def _listed(objects: list[Json], params: Params, url: str, filters: set[str]) -> Json:
    _known(params, filters | {"limit", "starting_after", "customer"})
    limit = int(params.get("limit", 10))
    if not 1 <= limit <= 100:
        raise Refusal(400, "Limit must be between 1 and 100", param="limit")
    if after := params.get("starting_after"):
        ids = [each["id"] for each in objects]
        if after not in ids:
            raise Refusal(400, f"No such object: '{after}'", code="resource_missing", param="starting_after")
        objects = objects[ids.index(after) + 1 :]
    return {"object": "list", "url": url, "data": objects[:limit], "has_more": len(objects) > limit}


def _known(params: Params, known: set[str]) -> None:
    for name in sorted(params.keys() - known):
        raise Refusal(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def _required(params: Params, name: str) -> str:
    if not params.get(name):
        raise Refusal(400, f"Missing required param: {name}.", code="parameter_missing", param=name)
    return params[name]


def _url(params: Params, name: str) -> None:
    if not re.match(r"https?://[^/\s]+", _required(params, name)):
        raise Refusal(400, "Not a valid URL", code="url_invalid", param=name)


def _unknown(path: str) -> Refusal:
    return Refusal(404, f"Unrecognized request URL ({path}).")
