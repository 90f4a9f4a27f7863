"""The OpenAPI document: made from the routes, committed as docs/openapi.json, checked by the tests."""
