"""What operations cost, where the operator says otherwise than the defaults."""

from typing import Annotated

from psycopg.types.json import Jsonb
from pydantic import AfterValidator, ConfigDict, Field, RootModel

from backplane import audit_log, ledger
from backplane.auth import Caller
from backplane.db import Tx

MAX_COST = 1_000_000_000


def _for_sale(operation: str) -> str:
    if operation == "admin_adjustment":
        raise ValueError("admin_adjustment is not for sale")
    return operation


Operation = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$"), AfterValidator(_for_sale)]
Cost = Annotated[int, Field(ge=0, le=MAX_COST)]  # never below 0: a negative price would make credits


class FeatureCosts(RootModel[dict[Operation, Cost]]):
    """{operation: credits for one unit}. What is left out has its default."""

    model_config = ConfigDict(strict=True, frozen=True)
    root: Annotated[dict[Operation, Cost], Field(max_length=200)]


def replace(tx: Tx, body: FeatureCosts, caller: Caller) -> dict[str, int]:
    """Puts these overrides in the place of those before. Answers the price list that comes of it."""
    tx.execute("UPDATE platform.admin_settings SET feature_costs = %s", [Jsonb(body.root)])
    audit_log.write(
        tx, "feature_costs.replaced", actor=caller.actor, target="admin_settings:singleton", details=body.root
    )
    return ledger.costs(tx)
