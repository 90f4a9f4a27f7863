"""The public price list."""

from backplane import api, db
from backplane import plans as catalog

router = api.Router()


@router.get("/v1/plans")
def plans() -> catalog.Catalog:
    """The price list: plans, what each gives and allows, and packs of credits."""
    return db.run(catalog.catalog)


handler = api.lambda_handler(router)
