"""Billing: the organisation's subscription, and the way to Stripe's checkout and customer portal."""

from typing import Annotated, Any, Self
from uuid import UUID, uuid4

import return_urls
from aws_lambda_powertools import Logger
from pydantic import BaseModel, Field, model_validator

from backplane import api, customers, db, idempotency, plans, stripe_api, subscriptions
from backplane.problems import Conflict, InvalidState, Unavailable, Unprocessable

logger = Logger()
router = api.Router()

Url = Annotated[str, Field(min_length=1, max_length=2048)]
Identifier = Annotated[str, Field(min_length=1, max_length=255)]


class CheckoutRequest(api.Body):
    """What to buy: a plan by its price, or a pack of credits."""

    price_id: Identifier | None = None
    pack_id: Identifier | None = None
    success_url: Url
    cancel_url: Url

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if (self.price_id is None) == (self.pack_id is None):
            raise ValueError("send price_id or pack_id, one of them")
        return self


class PortalRequest(api.Body):
    return_url: Url


class Redirect(BaseModel):
    url: str


@router.get("/v1/subscription", scope="read")
def subscription(caller: api.Caller) -> subscriptions.Overview:
    """The organisation's subscription, and what it has been through."""
    return db.run(
        lambda tx: subscriptions.overview(tx, caller.organization_id), organization_id=caller.organization_id
    )


@router.post("/v1/billing/checkout", scope="billing:manage", raises=(InvalidState,))
def checkout(body: CheckoutRequest, caller: api.Caller, key: api.RepeatKey) -> Redirect:
    """A page of Stripe's to buy a plan or a pack of credits on. Send the customer there."""
    _require_stripe()
    return_urls.check(success_url=body.success_url, cancel_url=body.cancel_url)
    price_id, customer = db.run(
        lambda tx: _order(tx, caller.organization_id, body), organization_id=caller.organization_id
    )
    params = _session(body, price_id, caller.organization_id)
    try:
        return _made("/v1/checkout/sessions", params | _buyer(body, customer), caller, key)
    except stripe_api.Refused as refused:
        if refused.param != "customer":
            raise _refusal(body, refused) from refused
    # The customer is gone at Stripe and its event has not come yet: this purchase makes a new one.
    try:
        return _made("/v1/checkout/sessions", params | _buyer(body, None), caller, key)
    except stripe_api.Refused as refused:
        raise _refusal(body, refused) from refused


@router.post("/v1/billing/portal", scope="billing:manage", raises=(InvalidState,))
def portal(body: PortalRequest, caller: api.Caller, key: api.RepeatKey) -> Redirect:
    """A page of Stripe's where the customer changes or ends his subscription. Send him there."""
    _require_stripe()
    return_urls.check(return_url=body.return_url)
    customer = db.run(
        lambda tx: customers.of_organization(tx, "stripe", caller.organization_id),
        organization_id=caller.organization_id,
    )
    if customer is None:
        raise _no_customer()
    params = {"customer": customer, "return_url": body.return_url}
    try:
        return _made("/v1/billing_portal/sessions", params, caller, key)
    except stripe_api.Refused as refused:
        if refused.param == "customer":
            raise _no_customer() from refused
        logger.exception("Stripe refuses the portal: is it set up in the dashboard?")
        raise Unavailable("The billing portal is not available at the moment.", retry_after=60) from refused


def _require_stripe() -> None:
    if not stripe_api.configured():
        raise Unavailable("Payments are not set up here: no Stripe API key is configured.", retry_after=3600)


def _order(tx: db.Tx, organization_id: UUID, body: CheckoutRequest) -> tuple[str, str | None]:
    """The price to pay, and the organisation's customer if it has one.

    Raises Unprocessable where the price or pack is not for sale, Conflict where the organisation has a
    subscription already: a second one would be paid beside the first.
    """
    if body.pack_id is not None:
        price_id = plans.pack_price(tx, body.pack_id)
    elif body.price_id is not None and plans.is_for_sale(tx, body.price_id):
        price_id = body.price_id
        if subscriptions.pays(tx, "stripe", organization_id):
            raise InvalidState(
                "The organisation has a subscription: change its plan by POST /v1/billing/portal.",
            )
    else:
        price_id = None
    if price_id is None:
        raise _not_for_sale(body)
    return price_id, customers.of_organization(tx, "stripe", organization_id)


def _session(body: CheckoutRequest, price_id: str, organization_id: UUID) -> dict[str, Any]:
    """A checkout that names the organisation wherever its events will look for it."""
    named = {"organization_id": str(organization_id)}
    params: dict[str, Any] = {
        "line_items": [{"price": price_id, "quantity": 1}],
        "success_url": body.success_url,
        "cancel_url": body.cancel_url,
        "client_reference_id": str(organization_id),
    }
    if body.pack_id is None:
        return params | {"mode": "subscription", "metadata": named, "subscription_data": {"metadata": named}}
    named["pack_id"] = body.pack_id
    return params | {"mode": "payment", "metadata": named, "payment_intent_data": {"metadata": named}}


def _buyer(body: CheckoutRequest, customer: str | None) -> dict[str, str]:
    """The organisation's customer; a pack's first purchase makes one, as a subscription does by itself."""
    if customer is not None:
        return {"customer": customer}
    return {} if body.pack_id is None else {"customer_creation": "always"}


def _made(path: str, params: dict[str, Any], caller: api.Caller, key: str | None) -> Redirect:
    """The session's URL. A request that was cut off between Stripe and us, and comes again under its
    Idempotency-Key, is answered the session that Stripe made then.
    """
    once = str(uuid4())
    if key is not None:
        once = idempotency.request_hash(str(caller.organization_id), key, path, params).hex()
    return Redirect(url=stripe_api.post(path, params, idempotency_key=once)["url"])


def _refusal(body: CheckoutRequest, refused: stripe_api.Refused) -> Exception:
    """Our price list and Stripe's differ, or our code and Stripe's API do."""
    if refused.param.startswith("line_items"):
        return _not_for_sale(body)
    return RuntimeError(f"Stripe refused a checkout: {refused}")


def _not_for_sale(body: CheckoutRequest) -> Unprocessable:
    field = "price_id" if body.pack_id is None else "pack_id"
    return Unprocessable(
        f"This {field} is not for sale. GET /v1/plans lists what is.",
        errors=[{"loc": ["body", field], "msg": "Not for sale", "type": "not_for_sale"}],
    )


def _no_customer() -> Conflict:
    return InvalidState(
        "The organisation has bought nothing through Stripe yet. Begin with POST /v1/billing/checkout.",
    )


handler = api.lambda_handler(router)
