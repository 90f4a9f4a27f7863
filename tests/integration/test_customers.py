"""Customers under their lock, whoever changes them meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.databases import Database, await_waiting
from tests.payers import Customer, linked_customer, moment, new_customer, organization
from tests.senders import FIRST, post_clerk, subscription

from backplane import customers, db, inbox

pytestmark = pytest.mark.usefixtures("webhook_secrets")


@pytest.fixture
def customer(system_db: Database) -> Customer:
    """Signed up, and linked by nothing yet."""
    customer = new_customer()
    post_clerk(customer.sign_up())
    return customer


def test_what_is_told_of_a_customer_is_what_stands_once_his_lock_is_had(
    system_db: Database, customer: Customer
) -> None:
    organization_id = organization(system_db, customer)
    with (
        system_db.connect("backplane_system") as other,
        system_db.connect() as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        with other.transaction():
            inbox.lock(other, customers.subject("stripe", customer.id))
            asked = pool.submit(db.run, lambda tx: customers.lock(tx, "stripe", customer.id))
            await_waiting(watcher, 1)
            customers.link(other, "stripe", customer.id, organization_id)
        assert asked.result(timeout=60) == customers.Customer(organization_id, deleted=False)


def test_a_customers_lock_is_held_until_the_transaction_ends(system_db: Database, customer: Customer) -> None:
    with (
        system_db.connect("backplane_system") as other,
        system_db.connect() as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        with db.transaction() as tx:
            assert customers.lock(tx, "stripe", customer.id) is None
            waiting = pool.submit(inbox.lock, other, customers.subject("stripe", customer.id))
            await_waiting(watcher, 1)
            assert not waiting.done()
        waiting.result(timeout=60)


def test_a_customer_a_plan_both_or_neither_may_be_known(system_db: Database) -> None:
    linked = linked_customer()
    [price] = [item["price"]["id"] for item in subscription()["items"]["data"]]
    who = customers.Customer(organization(system_db, linked), deleted=False)
    with db.transaction() as tx:
        for customer_id, known in ((linked.id, who), ("cus_unknown", None)):
            for price_id, key in ((price, "pro"), ("price_unknown", None)):
                found, plan = customers.lock_with_plan(tx, "stripe", customer_id, [price_id])
                assert (found, plan.key if plan else None) == (known, key)


@pytest.mark.usefixtures("system_db")
def test_a_buried_customer_of_nobody_is_told_as_deleted() -> None:
    with db.transaction() as tx:
        customers.bury(tx, "stripe", "cus_buried", moment(FIRST))
        assert customers.lock(tx, "stripe", "cus_buried") == customers.Customer(None, deleted=True)
