"""The demo's story: one user's first day, row by row, each checked in the database."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import boto3
import psycopg

from local.aws import REGION
from local.story import PATIENCE, Row, Story, expect


def sign_up(story: Story) -> str:
    user = {"id": story.user, "first_name": "Ada", "updated_at": story.started * 1000}
    address = {"id": "idn", "email_address": f"{story.user}@example.com"}
    told = user | {"email_addresses": [address], "primary_email_address_id": "idn"}
    expect("the answer", story.clerk("user.created", told).body["status"], "processed")
    expect("the balance", story.balance(), 100)
    return "a user, his organisation, 100 credits"


def buy_pro(story: Story) -> str:
    session = {"mode": "subscription", "payment_status": "paid", "subscription": f"sub_{story.user}"}
    session |= {"id": f"cs_{story.user}", "customer": story.customer, "client_reference_id": story.user}
    checkout = story.event("checkout.session.completed", session)
    expect("the checkout", story.stripe(checkout).body["status"], "processed")
    created = story.event("customer.subscription.created", story.subscription(), at=1)
    expect("the subscription", story.stripe(created).body["status"], "processed")
    expect("the tier", story.get("/v1/me").body["plan"]["tier"], "pro")
    return "the plan is pro"


def pay_ten_times(story: Story) -> str:
    event = story.event("invoice.paid", story.invoice(), at=2)
    with ThreadPoolExecutor(10) as pool:
        answers = Counter(
            answer.body["status"] for answer in pool.map(lambda _: story.stripe(event), range(10))
        )
    expect("the answers", dict(answers), {"processed": 1, "duplicate": 9})
    grants = story.rows("SELECT amount FROM credits.grants WHERE source_key = %s", f"invoice:in_{story.user}")
    expect("the grants", grants, [{"amount": 1000}])
    expect("the balance", story.balance(), 1100)
    return "1 processed, 9 duplicate: one grant of 1000"


def spend_at_once(story: Story) -> str:
    with ThreadPoolExecutor(20) as pool:
        answers = Counter(
            answer.status for answer in pool.map(lambda n: story.debit(f"debit-{n}"), range(20))
        )
    expect("the answers", dict(answers), {201: 20})
    expect("the balance", story.balance(), 1000)
    return "1100 - 20 x 5 = 1000"


def repeat_a_debit(story: Story) -> str:
    first, again = story.debit("the same key", 3), story.debit("the same key", 3)
    expect("the repetition", again.body, first.body)
    other = story.debit("the same key", 4)
    expect("another request under the key", (other.status, other.body["code"]), (409, "idempotency_conflict"))
    expect("the balance", story.balance(), 985)
    return "debited once; the key with another request is a conflict"


def spend_too_much(story: Story) -> str:
    answer = story.debit("too much", 1000)
    expect("the answer", (answer.status, answer.body["code"]), (402, "insufficient_credits"))
    expect("the balance", story.balance(), 985)
    return "402, nothing taken"


def come_late(story: Story) -> str:
    newer = story.event("customer.subscription.updated", story.subscription(cancel_at_period_end=True), at=20)
    older = story.event("customer.subscription.updated", story.subscription(status="past_due"), at=10)
    expect("the newer", story.stripe(newer).body["status"], "processed")
    expect("the older", story.stripe(older).body["status"], "stale")
    plan = story.get("/v1/me").body["plan"]
    expect("the status", (plan["status"], plan["cancels_at_period_end"]), ("active", True))
    return "stale: the newer state stands"


def forge(story: Story) -> str:
    event = story.event("checkout.session.completed", story.pack(story.user, "cs_forged"))
    answer = story.stripe(event, secret="whsec_guessed")  # noqa: S106  that is the point
    expect("the answer", (answer.status, answer.body["code"]), (400, "invalid_signature"))
    expect("its row", story.inbox(event), None)
    return "400, no row"


def come_early(story: Story) -> str:
    other = f"{story.user}b"
    event = story.event("checkout.session.completed", story.pack(other, f"cs_{other}"))
    expect("the answer", story.stripe(event).body["status"], "parked")
    story.clerk("user.created", {"id": other, "updated_at": story.started * 1000})
    expect("its row", story.inbox(event), "processed")
    expect("the balance", story.balance(other), 600)
    return "parked, then processed with the user's arrival"


def come_before_a_token(story: Story) -> str:
    other = f"{story.user}c"
    event = story.event("checkout.session.completed", story.pack(other, f"cs_{other}"))
    expect("the answer", story.stripe(event).body["status"], "parked")
    expect("his first request", story.get("/v1/me", other).status, 200)
    deadline = time.monotonic() + PATIENCE
    while story.inbox(event) != "processed" and time.monotonic() < deadline:
        time.sleep(0.1)
    expect("its row", story.inbox(event), "processed")
    expect("the balance", story.balance(other), 600)
    return "outbox, bus, queue, worker: processed"


def refund_a_pack(story: Story) -> str:
    other = f"{story.user}b"  # he has 600: 100 of the sign-up, 500 of the pack
    half = story.event("charge.refunded", story.charge(f"cs_{other}", refunded=1000), at=30)
    whole = story.event("charge.refunded", story.charge(f"cs_{other}", refunded=2000), at=40)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(story.stripe, [whole, half, half, whole]))
    expect("the balance", story.balance(other), 100)
    lost = {"id": f"re_{other}", "amount": 1000, "status": "failed", "payment_intent": f"pi_cs_{other}"}
    failed = story.event("refund.failed", lost | {"created": story.started + 40}, at=50)
    expect("the failure", story.stripe(failed).body["status"], "processed")
    expect("the balance", story.balance(other), 350)
    return "in two parts, told out of order: -500; the second fails: +250"


def dispute_a_pack(story: Story) -> str:
    other = f"{story.user}c"
    session = f"cs_{other}"
    spent = story.debit("before the dispute", 100, user=other)  # 500 of his 600
    expect("the debit", spent.status, 201)
    withdrawn = story.event("charge.dispute.funds_withdrawn", story.dispute(session, "needs_response"), at=30)
    expect("the withdrawal", story.stripe(withdrawn).body["status"], "processed")
    owed = story.get("/v1/credits", other).body
    expect("available and owed", (owed["available"], owed["debt"]), (0, 400))
    for kind in ("closed", "funds_reinstated"):
        won = story.event(f"charge.dispute.{kind}", story.dispute(session, "won"), at=60)
        expect(kind, story.stripe(won).body["status"], "processed")
    back = story.get("/v1/credits", other).body
    expect("available and owed", (back["available"], back["debt"]), (100, 0))
    return "500 go, of which 400 were spent and are owed; won: all is back, once"


def look_next_door(story: Story) -> str:
    theirs = story.get("/v1/me").body["organization"]["id"]
    stranger = {"authorization": f"Bearer {story.token(story.user + 'd')}", "x-organization-id": theirs}
    answer = story.request("GET", "/v1/credits", headers=stranger)
    expect("the answer", (answer.status, answer.body["code"]), (403, "forbidden"))
    with psycopg.connect(story.stack.database_url) as connection:
        seen = connection.execute("SELECT count(*) FROM credits.entries").fetchone()
    expect("entries that the application's role sees without an organisation", seen, (0,))
    return "403, and the database agrees"


def add_up(story: Story) -> str:
    wrong = story.rows(
        """
        SELECT a.organization_id
        FROM credits.accounts AS a
        LEFT JOIN LATERAL (
            SELECT coalesce(sum(amount), 0) AS total, count(*) AS entries
            FROM credits.entries AS e
            WHERE e.organization_id = a.organization_id
        ) AS e ON true
        LEFT JOIN LATERAL (
            SELECT coalesce(sum(remaining), 0) AS remaining
            FROM credits.grants AS g
            WHERE g.organization_id = a.organization_id AND g.live
        ) AS g ON true
        WHERE e.total <> a.available + a.held - a.debt OR e.entries <> a.version OR g.remaining <> a.available
        """
    )
    expect("the accounts that do not add up", wrong, [])
    return "every balance is the sum of its entries and of its grants"


def be_well(story: Story) -> str:
    answer = story.request("GET", "/health")
    expect("health", (answer.status, answer.body["status"]), (200, "healthy"))
    client = boto3.client(
        "lambda",
        endpoint_url=story.stack.lambda_url,
        region_name=REGION,
        aws_access_key_id="demo",
        aws_secret_access_key="demo",  # noqa: S106  nobody checks it here
    )
    invoked = client.invoke(FunctionName=story.stack.functions["health"], Payload=b"{}")
    expect("health, invoked", json.load(invoked["Payload"])["status"], "healthy")
    return "healthy, over HTTP and invoked"


STORY = (
    Row("a user signs up", sign_up),
    Row("he buys pro", buy_pro),
    Row("the paid invoice comes ten times at once", pay_ten_times),
    Row("twenty debits at once", spend_at_once),
    Row("a debit is repeated", repeat_a_debit),
    Row("more is asked than there is", spend_too_much),
    Row("an older event comes late", come_late),
    Row("a forged event", forge),
    Row("an event before its user", come_early),
    Row("an event before a user whom a token makes", come_before_a_token),
    Row("a refund in parts, one of which fails", refund_a_pack),
    Row("a dispute, and it is won", dispute_a_pack),
    Row("another organisation is asked for", look_next_door),
    Row("the books are read", add_up),
    Row("is all well?", be_well),
)
