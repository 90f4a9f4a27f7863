"""DATABASE_URL in all its forms, for another role."""

import pytest
from local.owner import as_role
from psycopg.conninfo import conninfo_to_dict


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://owner:old@db.example:5433/mine?sslmode=require",
        "postgres://owner@db.example/mine",
        "host=db.example dbname=mine user=owner password=old",
        "postgresql://owner@[::1]:5433/mine",
        "postgresql:///mine?host=/var/run/postgresql&user=owner",
        "postgresql://owner:old@one.example,two.example:5433/mine?target_session_attrs=read-write",
        "postgresql://owner:old@db.example/my%20database",
    ],
)
def test_only_the_login_changes(url: str) -> None:
    before = conninfo_to_dict(url)
    after = conninfo_to_dict(as_role(url, "backplane_app", "p@ss:w/rd %"))

    assert (after.pop("user"), after.pop("password")) == ("backplane_app", "p@ss:w/rd %")
    assert after == {key: value for key, value in before.items() if key not in {"user", "password"}}


def test_it_is_a_url_whatever_the_form_was() -> None:
    made = as_role("host=db.example port=5433 dbname=mine", "backplane_app", "secret")

    assert made == "postgresql://backplane_app:secret@db.example:5433/mine"
