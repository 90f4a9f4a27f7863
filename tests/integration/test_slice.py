"""The main job, handler by handler: webhooks become a user, a plan, credits and an exact balance."""

from tests.databases import Database
from tests.senders import (
    checkout_session,
    clerk_user,
    invoice,
    post_clerk,
    post_stripe,
    stripe_event,
    subscription,
)


def test_a_sign_up_and_a_paid_subscription_become_credits(webhook_secrets: None, system_db: Database) -> None:
    checkout = checkout_session(client_reference_id="user_1")
    assert post_clerk(clerk_user("user_1")).body["status"] == "processed"
    assert post_stripe(stripe_event("checkout.session.completed", checkout)).body["status"] == "processed"
    assert (
        post_stripe(stripe_event("customer.subscription.created", subscription())).body["status"]
        == "processed"
    )
    assert post_stripe(stripe_event("invoice.paid", invoice())).body["status"] == "processed"
    with system_db.connect() as connection:
        accounts = connection.execute("SELECT available, held, debt FROM credits.accounts").fetchall()
    assert accounts == [{"available": 1100, "held": 0, "debt": 0}]
