"""What Stripe knows and we do not: the events of 30 days that the inbox lacks, or one customer's objects.

By schedule it lists Stripe's events and replays what never came, and cancels what nobody is left to use.
Invoked with {"customer": "cus_…"} it compares that customer's checkout sessions, subscriptions and paid
invoices with ours. Whatever it finds goes through the inbox, so it is safe to run twice, at once, and to
kill. Without a Stripe API key it says so.
"""

import time
from collections.abc import Mapping
from typing import Any

import customer_scan
import event_scan
import orphans
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from backplane import db, outbox, requests, stripe_api
from backplane.config import settings
from backplane.problems import Unavailable

MARGIN = 30.0  # seconds kept back: more than an event takes, its fetch included

logger = Logger()
metrics = Metrics(namespace="Backplane", service="backplane")


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics
def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers {ok, configured, …}: event_scan.run's report with orphans.run's, or customer_scan.run's.

    Metrics: StripeDrift, how many events never came; StripeReconciliationFailures, 1 where it could
    not be done.
    """
    remaining = context.get_remaining_time_in_millis() / 1000
    db.set_deadline(remaining)
    drift, failed = 0, 1
    try:
        answer, drift = _compare(event, seconds=remaining - MARGIN)
        failed = not answer["ok"]
    finally:
        metrics.add_dimension(name="stage", value=settings().stage)
        metrics.add_metric(name="StripeDrift", unit=MetricUnit.Count, value=drift)
        metrics.add_metric(name="StripeReconciliationFailures", unit=MetricUnit.Count, value=failed)
        outbox.poke()
    logger.info("reconciled", extra={"answer": answer})
    return answer


def _compare(event: Mapping[str, Any], *, seconds: float) -> tuple[dict[str, Any], int]:
    """The report, and how much was found that should have been here."""
    if not stripe_api.configured():
        reason = "no Stripe API key is configured: there is nothing to compare with"
        return {"ok": True, "configured": False, "reason": reason}, 0
    customer = event.get("customer")
    if customer is not None and not (
        isinstance(customer, str) and 0 < len(customer) <= requests.MAX_ENVELOPE_TEXT
    ):
        return _failed("customer must be the id of one of Stripe's customers: cus_…")
    try:
        if customer is None:
            began = time.monotonic()
            report = event_scan.run(seconds=seconds)
            ends = orphans.run(seconds=seconds - (time.monotonic() - began))
            both = {"ok": report["ok"] and ends["ok"], "orphans": ends}
            return {"configured": True, **report, **both}, report["late"]
        return {"configured": True, **customer_scan.run(customer)}, 0  # who asks reads the answer
    except stripe_api.Refused as refused:
        return _failed(f"Stripe refuses: {refused}")
    except Unavailable as problem:
        return _failed(problem.detail)


def _failed(reason: str) -> tuple[dict[str, Any], int]:
    logger.error("not reconciled", reason=reason)
    return {"ok": False, "configured": True, "reason": reason}, 0
