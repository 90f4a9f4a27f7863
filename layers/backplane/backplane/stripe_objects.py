"""Stripe's objects as events carry them, in old and new shapes, down to what we use.

An endpoint's api_version decides the shape. Since 2025-03-31.basil the period stands on the items
instead of the subscription, and an invoice names its subscription under `parent`; older endpoints
send what went before. Both are read, whichever comes.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from backplane.periods import YEAR_9999


def _moment(value: object) -> object:
    """Unix seconds to an aware datetime."""
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < YEAR_9999:
        raise ValueError("a time must be whole seconds between 1970 and 9998")
    return datetime.fromtimestamp(value, UTC)


def _identifier(value: object) -> object:
    """An expandable field holds an id, or the whole object with its id."""
    return value["id"] if isinstance(value, dict) and "id" in value else value


Moment = Annotated[datetime | None, BeforeValidator(_moment)]
Identifier = Annotated[str, BeforeValidator(_identifier), Field(min_length=1, max_length=255)]
OptionalIdentifier = Annotated[
    Annotated[str, Field(min_length=1, max_length=255)] | None, BeforeValidator(_identifier)
]
# Minor units, far above the most that Stripe charges at once; sums of them stay far below 64 bits.
Amount = Annotated[int, Field(ge=0, lt=10**14)]
Metadata = Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})]


Currency = Annotated[str, Field(max_length=10)] | None


class StripeObject(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Price(StripeObject):
    id: Identifier


class _Item(StripeObject):
    price: _Price | None = None
    plan: _Price | None = None
    current_period_start: Moment = None
    current_period_end: Moment = None


class _Items(StripeObject):
    data: list[_Item] = []


class Subscription(StripeObject):
    id: Identifier
    customer: Identifier
    status: Literal[
        "incomplete", "incomplete_expired", "trialing", "active", "past_due", "unpaid", "paused", "canceled"
    ]
    items: _Items = _Items()
    plan: _Price | None = None  # before items, and on single-item subscriptions for long after
    current_period_start: Moment = None
    current_period_end: Moment = None
    cancel_at_period_end: bool = False
    cancel_at: Moment = None
    canceled_at: Moment = None
    ended_at: Moment = None
    trial_end: Moment = None
    pause_collection: dict[str, Any] | None = None  # leaves the status as it is
    metadata: Metadata = {}

    @property
    def price_ids(self) -> list[str]:
        """The items' prices, in their order."""
        prices = [item.price or item.plan for item in self.items.data]
        return [price.id for price in (prices or [self.plan]) if price is not None]

    @property
    def period(self) -> tuple[datetime | None, datetime | None]:
        """Start and end; with several items the period that ends first, when the next bill comes."""
        if self.current_period_end is not None:
            return self.current_period_start, self.current_period_end
        periods = [
            (item.current_period_start, item.current_period_end)
            for item in self.items.data
            if item.current_period_end is not None
        ]
        return min(periods, key=lambda period: str(period[1]), default=(None, None))


class _SubscriptionDetails(StripeObject):
    subscription: OptionalIdentifier = None
    metadata: Metadata = {}


class _InvoiceParent(StripeObject):
    subscription_details: _SubscriptionDetails | None = None


class _LineItemDetails(StripeObject):
    subscription: OptionalIdentifier = None
    proration: bool = False


class _LineParent(StripeObject):
    subscription_item_details: _LineItemDetails | None = None
    invoice_item_details: _LineItemDetails | None = None


class _PriceDetails(StripeObject):
    price: OptionalIdentifier = None


class _Pricing(StripeObject):
    price_details: _PriceDetails | None = None


class _Period(StripeObject):
    start: Annotated[datetime, BeforeValidator(_moment)]
    end: Annotated[datetime, BeforeValidator(_moment)]


class InvoiceLine(StripeObject):
    amount: int
    period: _Period
    price: _Price | None = None  # before basil
    plan: _Price | None = None  # long before
    pricing: _Pricing | None = None  # since basil
    proration: bool = False  # before basil
    parent: _LineParent | None = None  # since basil

    @property
    def price_id(self) -> str | None:
        if self.pricing is not None and self.pricing.price_details is not None:
            return self.pricing.price_details.price
        price = self.price or self.plan
        return None if price is None else price.id

    @property
    def is_proration(self) -> bool:
        details = (
            ()
            if self.parent is None
            else (
                self.parent.subscription_item_details,
                self.parent.invoice_item_details,
            )
        )
        return self.proration or any(detail is not None and detail.proration for detail in details)


class _Lines(StripeObject):
    data: list[InvoiceLine] = []


class Invoice(StripeObject):
    id: Identifier
    customer: Identifier
    billing_reason: str | None = None
    lines: _Lines = _Lines()
    subscription_: OptionalIdentifier = Field(default=None, alias="subscription")  # before basil
    subscription_details: _SubscriptionDetails | None = None  # before basil, only metadata
    parent: _InvoiceParent | None = None  # since basil
    payment_intent: OptionalIdentifier = None  # before basil
    charge: OptionalIdentifier = None  # before basil
    amount_paid: Amount | None = None
    amount_due: Amount | None = None
    currency: Currency = None
    attempt_count: Amount | None = None
    next_payment_attempt: Moment = None
    hosted_invoice_url: Annotated[str, Field(max_length=2048)] | None = None

    @property
    def subscription(self) -> str | None:
        details = self._details
        return self.subscription_ or (details.subscription if details is not None else None)

    @property
    def subscription_metadata(self) -> dict[str, Any]:
        details = self._details
        return details.metadata if details is not None else {}

    @property
    def _details(self) -> _SubscriptionDetails | None:
        parent = self.parent.subscription_details if self.parent is not None else None
        return parent or self.subscription_details


class _SessionItem(StripeObject):
    price: _Price | None = None
    quantity: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class _SessionItems(StripeObject):
    data: list[_SessionItem] = []


class CheckoutSession(StripeObject):
    id: Identifier
    mode: Literal["payment", "subscription", "setup"]
    payment_status: Literal["paid", "unpaid", "no_payment_required"]
    customer: OptionalIdentifier = None
    client_reference_id: str | None = None
    subscription: OptionalIdentifier = None
    payment_intent: OptionalIdentifier = None
    invoice: OptionalIdentifier = None
    amount_total: Amount | None = None
    currency: Currency = None
    line_items: _SessionItems | None = None  # only where they were fetched: events leave them out
    metadata: Metadata = {}


class _InvoicePaymentSource(StripeObject):
    payment_intent: OptionalIdentifier = None
    charge: OptionalIdentifier = None


class InvoicePayment(StripeObject):
    """Since basil: what paid an invoice."""

    id: Identifier
    invoice: Identifier
    payment: _InvoicePaymentSource
    amount_paid: Amount | None = None


class Charge(StripeObject):
    id: Identifier
    payment_intent: OptionalIdentifier = None
    invoice: OptionalIdentifier = None  # before basil
    amount: Amount
    amount_captured: Amount | None = None
    amount_refunded: Amount  # cumulative


class Refund(StripeObject):
    id: Identifier
    charge: OptionalIdentifier = None
    payment_intent: OptionalIdentifier = None
    amount: Amount
    status: Annotated[str, Field(max_length=50)] | None = None
    failure_reason: Annotated[str, Field(max_length=255)] | None = None
    created: Moment = None


class Dispute(StripeObject):
    id: Identifier
    charge: OptionalIdentifier = None
    payment_intent: OptionalIdentifier = None
    amount: Amount
    currency: Currency = None
    reason: Annotated[str, Field(max_length=255)] | None = None
    status: Annotated[str, Field(max_length=50)]


class Customer(StripeObject):
    id: Identifier
