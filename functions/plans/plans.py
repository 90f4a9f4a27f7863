"""The public price list."""

from backplane import api, db
from backplane import plans as catalog

router = api.Router()


@router.get("/v1/plans")
def plans() -> catalog.Catalog:
    return db.run(catalog.catalog)


handler = api.lambda_handler(router)
