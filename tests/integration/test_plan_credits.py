"""A year's credits, month by month: on the anchor day, once, and no longer than the subscription goes on."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import plan_credits
import pytest
from psycopg.rows import DictRow
from samtranslator.yaml_helper import yaml_parse
from tests.databases import Database
from tests.payers import PRO, SIGN_UP, Customer, available, organization, rows, status
from tests.senders import (
    FIRST,
    charge,
    dispute,
    invoice_line,
    invoice_payment,
    invoke,
    post_clerk,
    stripe_event,
)

from backplane import config, db
from backplane.periods import add_months

pytestmark = pytest.mark.usefixtures("webhook_secrets")

TEMPLATE = Path(__file__).parents[2] / "template.yaml"
NOW = datetime.now(UTC).replace(microsecond=0)
GRACE = timedelta(hours=72)


def run(**limits: float) -> dict[str, Any]:
    answer: dict[str, Any] = invoke(plan_credits.handler, {}, **limits)
    return answer


def year_begun(months_ago: int, *, seconds: int = 60) -> tuple[datetime, datetime]:
    """A year whose month number `months_ago` began a minute ago."""
    start = add_months(NOW, -months_ago) - timedelta(seconds=seconds)
    return start, add_months(start, 12)


def subscriber(
    number: int = 1,
    *,
    months_ago: int = 0,
    period: tuple[datetime, datetime] | None = None,
    price: str = "price_pro_yearly",
    paid: bool = True,
    **fields: Any,
) -> Customer:
    """Signed up, linked, subscribed for a year, which is paid."""
    customer = Customer(number)
    start, end = (int(moment.timestamp()) for moment in period or year_begun(months_ago))
    post_clerk(customer.sign_up())
    assert status(customer.checkout()) == "processed"
    assert status(customer.told("created", price=price, start=start, end=end, **fields)) == "processed"
    if paid:
        line = invoice_line(price=price, start=start, end=end)
        assert status(customer.paid(lines=[line])) == "processed"
    return customer


def months(database: Database, customer: Customer) -> list[DictRow]:
    """The months that were granted by the schedule, in order."""
    return rows(
        database,
        """
        SELECT source_key, amount, live, expires_at, period_end
        FROM credits.grants
        WHERE organization_id = %s AND starts_with(source_key, 'month:')
        ORDER BY period_end
        """,
        organization(database, customer),
    )


# ---- which months ----


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ((2026, 1, 31), (2027, 1, 31), [(2, 28), (3, 31), (4, 30), (5, 31)]),
        ((2027, 10, 30), (2028, 10, 30), [(11, 30), (12, 30), (1, 30), (2, 29)]),
        ((2026, 5, 1), (2027, 5, 1), [(6, 1), (7, 1), (8, 1), (9, 1)]),
    ],
)
def test_months_begin_on_the_anchor_day_or_the_months_last(
    start: tuple[int, int, int], end: tuple[int, int, int], days: list[tuple[int, int]]
) -> None:
    year = plan_credits.months_of_year(datetime(*start, 12, tzinfo=UTC), datetime(*end, 12, tzinfo=UTC))
    assert [(begin.month, begin.day) for begin, _ in year[:4]] == days
    assert len(year) == 11
    assert [finish for _, finish in year[:-1]] == [begin for begin, _ in year[1:]]
    assert year[-1][1] == datetime(*end, 12, tzinfo=UTC)


def test_a_period_that_joins_a_year_late_has_the_months_that_are_left() -> None:
    start, end = datetime(2026, 7, 20, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)
    begun = [begin for begin, _ in plan_credits.months_of_year(start, end)]
    assert begun == [datetime(2026, 8, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC)]


# ---- once a month ----


def test_the_first_month_came_with_the_invoice(system_db: Database) -> None:
    ada = subscriber()
    assert run() == {"ok": True, "complete": True, "subscriptions": 1, "granted": 0, "failed": []}
    assert available(system_db, ada) == SIGN_UP + PRO


def test_a_month_that_has_begun_is_granted_once_and_ends_the_one_before(system_db: Database) -> None:
    ada = subscriber(months_ago=1)
    assert [run()["granted"] for _ in range(3)] == [1, 0, 0]
    assert available(system_db, ada) == SIGN_UP + PRO
    [month] = months(system_db, ada)
    start, _ = year_begun(1)
    assert (month["period_end"], month["amount"], month["live"]) == (add_months(start, 2), PRO, True)
    assert month["expires_at"] == month["period_end"] + GRACE


def test_a_month_that_has_not_begun_is_not_granted(system_db: Database) -> None:
    start, end = year_begun(1, seconds=-3600)  # its second month begins in an hour
    subscriber(period=(start, end))
    assert run()["granted"] == 0


def test_what_an_outage_missed_is_made_good_in_order(system_db: Database) -> None:
    ada = subscriber(months_ago=4)
    assert run()["granted"] == 4
    assert [month["live"] for month in months(system_db, ada)] == [False, False, False, True]
    assert available(system_db, ada) == SIGN_UP + PRO


def test_each_missed_month_pays_what_debt_there_was(system_db: Database) -> None:
    ada = subscriber(months_ago=2)
    with system_db.connect() as owner:
        owner.execute(
            "UPDATE credits.accounts SET debt = 1500 WHERE organization_id = %s",
            [organization(system_db, ada)],
        )
    assert run()["granted"] == 2
    [account] = rows(system_db, "SELECT debt, available FROM credits.accounts")
    assert (account["debt"], account["available"]) == (0, SIGN_UP + 500)


def test_the_plan_of_today_says_how_much(system_db: Database) -> None:
    ada = subscriber(months_ago=1)
    start, end = (int(moment.timestamp()) for moment in year_begun(1))
    status(ada.told("updated", created=FIRST + 9, price="price_super_yearly", start=start, end=end))
    run()
    assert [month["amount"] for month in months(system_db, ada)] == [10_000]


def test_two_runs_at_once_grant_each_month_once(system_db: Database) -> None:
    customers = [subscriber(number, months_ago=2) for number in range(1, 4)]

    def race(_: int) -> int:
        with system_db.connect("backplane_system") as connection:
            granted = 0
            for yearly in plan_credits._yearly(connection, "s.id > %(id)s", UUID(int=0)):
                with connection.transaction():
                    granted += plan_credits._grant_missing(connection, yearly.id)
            return granted

    db.reset()
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(race, range(4))) == 6
    assert [len(months(system_db, customer)) for customer in customers] == [2, 2, 2]
    assert [available(system_db, customer) for customer in customers] == [SIGN_UP + PRO] * 3


def test_a_run_that_is_killed_between_two_is_finished_by_the_next(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers = [subscriber(number, months_ago=1) for number in (1, 2)]
    grant = plan_credits._grant

    def killed(subscription_id: Any) -> int:
        monkeypatch.setattr(plan_credits, "_grant", lambda _: 1 / 0)
        return grant(subscription_id)

    monkeypatch.setattr(plan_credits, "_grant", killed)
    with pytest.raises(ZeroDivisionError):
        run()
    monkeypatch.setattr(plan_credits, "_grant", grant)
    assert run()["granted"] == 1
    assert [len(months(system_db, customer)) for customer in customers] == [1, 1]


# ---- as long as it goes on ----


@pytest.mark.parametrize("told", ["trialing", "past_due", "unpaid", "incomplete", "paused", "canceled"])
def test_only_what_is_active_is_granted_months(system_db: Database, told: str) -> None:
    subscriber(months_ago=3, status=told, paid=False)
    assert run()["granted"] == 0


def test_what_was_past_due_is_made_good_once_it_is_paid(system_db: Database) -> None:
    ada = subscriber(months_ago=2, status="past_due")
    assert run()["granted"] == 0
    start, end = (int(moment.timestamp()) for moment in year_begun(2))
    status(ada.told("updated", created=FIRST + 9, price="price_pro_yearly", start=start, end=end))
    assert run()["granted"] == 2


def test_a_canceled_subscription_gets_no_more_and_loses_what_is_left(system_db: Database) -> None:
    ada = subscriber(months_ago=1)
    run()
    start, end = (int(moment.timestamp()) for moment in year_begun(1))
    over = ada.told(
        "deleted", created=FIRST + 9, price="price_pro_yearly", start=start, end=end, status="canceled"
    )
    assert status(over) == "processed"
    assert available(system_db, ada) == SIGN_UP
    rows(system_db, "DELETE FROM billing.usage_counters RETURNING 1")
    assert run()["granted"] == 0


def test_one_that_ends_with_its_year_gets_its_months_until_then(system_db: Database) -> None:
    subscriber(months_ago=11, cancel_at_period_end=True)
    assert run()["granted"] == 11


def test_a_year_that_is_over_without_a_renewal_gets_its_last_months_and_no_more(system_db: Database) -> None:
    subscriber(months_ago=13)
    assert run()["granted"] == 11


def test_a_monthly_subscription_is_none_of_its_business(system_db: Database) -> None:
    start = NOW - timedelta(days=40)
    subscriber(period=(start, start + timedelta(days=31)), price="price_pro_monthly")
    assert run() == {"ok": True, "complete": True, "subscriptions": 0, "granted": 0, "failed": []}


# ---- what of the year's payment goes back ----


def paid_year(number: int, months_ago: int, **fields: Any) -> Customer:
    customer = subscriber(number, months_ago=months_ago, paid=False)
    start, end = (int(moment.timestamp()) for moment in year_begun(months_ago))
    line = invoice_line(price="price_pro_yearly", start=start, end=end)
    assert status(customer.paid(id=f"in_{number}", lines=[line], **fields)) == "processed"
    paid = invoice_payment(f"in_{number}", f"pi_{number}")
    assert status(stripe_event("invoice_payment.paid", paid)) == "processed"
    return customer


def take_back(number: int, way: str) -> None:
    names: dict[str, Any] = {"payment_intent": f"pi_{number}"}
    if way == "half refunded":
        event = stripe_event("charge.refunded", charge(f"ch_{number}", refunded=2450, **names))
    else:
        told = dispute(f"du_{number}", status="needs_response", **names)
        event = stripe_event("charge.dispute.funds_withdrawn", told)
    assert status(event) == "processed"


@pytest.mark.parametrize(("way", "left"), [("half refunded", PRO // 2), ("disputed", 0)])
@pytest.mark.parametrize("order", ["months first", "months last", "between two"])
def test_a_month_goes_back_with_its_years_payment_in_either_order(
    system_db: Database, way: str, left: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = paid_year(1, 2), paid_year(2, 2)
    if order == "between two":
        whole = plan_credits.months_of_year
        monkeypatch.setattr(plan_credits, "months_of_year", lambda *year: whole(*year)[:1])
    if order != "months last":
        run()
    take_back(1, way)
    monkeypatch.undo()
    if order != "months first":
        run()
    assert [month["live"] for month in months(system_db, ada)][-1] is bool(left)
    assert available(system_db, ada) == SIGN_UP + left
    assert available(system_db, bob) == SIGN_UP + PRO
    assert run()["granted"] == 0


def test_a_dispute_that_is_won_gives_the_month_back(system_db: Database) -> None:
    ada = paid_year(1, 1)
    take_back(1, "disputed")
    run()
    assert available(system_db, ada) == SIGN_UP
    told = dispute("du_1", status="won", payment_intent="pi_1")
    assert status(stripe_event("charge.dispute.closed", told, created=FIRST + 60)) == "processed"
    assert available(system_db, ada) == SIGN_UP + PRO


def test_a_refund_of_the_year_before_leaves_this_years_months(system_db: Database) -> None:
    ada = paid_year(1, 13)
    start, end = year_begun(1)
    renewed = [invoice_line(price="price_pro_yearly", start=int(start.timestamp()), end=int(end.timestamp()))]
    told = {"start": int(start.timestamp()), "end": int(end.timestamp()), "price": "price_pro_yearly"}
    assert status(ada.told("updated", created=FIRST + 60, **told)) == "processed"
    assert status(ada.paid(reason="subscription_cycle", lines=renewed)) == "processed"
    run()
    take_back(1, "disputed")
    assert available(system_db, ada) == SIGN_UP + PRO


# ---- in bounds, and watched ----


def test_many_are_looked_at_in_batches(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_credits, "BATCH", 2)
    for number in range(1, 6):
        subscriber(number, months_ago=1)
    answer = run()
    assert (answer["subscriptions"], answer["granted"]) == (5, 5)


def test_one_accounts_defect_does_not_stop_the_others(
    system_db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, sound = subscriber(1, months_ago=1), subscriber(2, months_ago=1)
    with system_db.connect() as owner:
        owner.execute(
            "ALTER TABLE credits.accounts ADD CONSTRAINT broken CHECK (organization_id <> '"
            f"{organization(system_db, broken)}') NOT VALID".encode()
        )
    answer = run()
    assert (answer["ok"], answer["granted"], len(answer["failed"])) == (False, 1, 1)
    assert len(months(system_db, sound)) == 1
    assert metric(capsys.readouterr().out)["PlanCreditsFailures"] == [1.0]


def test_a_run_without_time_says_that_it_is_not_complete(system_db: Database) -> None:
    subscriber(months_ago=1)
    answer = run(seconds=plan_credits.MARGIN)
    assert (answer["ok"], answer["complete"], answer["granted"]) == (False, False, 0)


def metric(said: str) -> dict[str, Any]:
    [record] = [json.loads(line) for line in said.splitlines() if '"_aws"' in line]
    found: dict[str, Any] = record
    return found


def test_the_alarm_watches_the_metric_that_is_written(
    system_db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = yaml_parse(TEMPLATE.read_text())["Resources"]["PlanCreditsAlarm"]["Properties"]
    run()
    record = metric(capsys.readouterr().out)
    written = record["_aws"]["CloudWatchMetrics"][0]
    assert (written["Namespace"], written["Metrics"][0]["Name"]) == (alarm["Namespace"], alarm["MetricName"])
    watched = {dimension["Name"]: dimension["Value"] for dimension in alarm["Dimensions"]}
    assert [set(names) for names in written["Dimensions"]] == [set(watched)]
    assert (record["stage"], record["service"]) == (config.settings().stage, watched["service"])
