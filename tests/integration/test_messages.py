"""Conversations: appended by many at once, read in parts, and searched."""

import random
from typing import Any
from uuid import UUID, uuid4

import message_search
import pytest
from tests import counters
from tests.callers import Customer, moment, send, sign_up, token, trust_our_tokens
from tests.databases import Database
from tests.ledgers import new_account, rows
from tests.senders import Answer

from backplane import db, messages


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up("user_ada")


def create(customer: Customer, title: str = "Fitness", **fields: Any) -> str:
    answer = send("POST", "/v1/projects", customer.token, body={"title": title, "kind": "web"} | fields)
    assert answer.status == 201, answer.body
    project_id: str = answer.body["id"]
    return project_id


def say(customer: Customer, project_id: str, content: Any, role: str = "user") -> Answer:
    path = f"/v1/projects/{project_id}/messages"
    return send("POST", path, customer.token, body={"role": role, "content": content})


def heard(customer: Customer, project_id: str, **query: str) -> Any:
    answer = send("GET", f"/v1/projects/{project_id}/messages", customer.token, query=query)
    assert answer.status == 200, answer.body
    return answer.body


def found(customer: Customer, text: str, **query: str) -> list[Any]:
    answer = send("GET", "/v1/projects/search", customer.token, query={"q": text} | query)
    assert answer.status == 200, answer.body
    return [item["message"]["content"] for item in answer.body["items"]]


# ---- appending and reading ----


def test_a_message_is_answered_counted_and_touches_its_project(app_db: Database, ada: Customer) -> None:
    project_id = create(ada)
    before = send("GET", f"/v1/projects/{project_id}", ada.token).body
    said = say(ada, project_id, "Make it blue")
    assert said.status == 201
    assert said.body | {"id": "", "created_at": ""} == {
        "id": "", "sequence": 1, "role": "user", "content": "Make it blue", "created_at": "",
    }  # fmt: skip
    after = send("GET", f"/v1/projects/{project_id}", ada.token).body
    assert after["message_count"] == 1
    assert moment(after["updated_at"]) > moment(before["updated_at"])
    [row] = rows(app_db, "SELECT created_by FROM projects.messages")
    assert row["created_by"] == ada.user_id


def test_messages_come_newest_first_in_parts_that_stay_put(app_db: Database, ada: Customer) -> None:
    project_id = create(ada)
    for number in range(1, 6):
        say(ada, project_id, f"message {number}", role="assistant" if number % 2 else "user")
    first = heard(ada, project_id, limit="2")
    say(ada, project_id, "message 6")
    rest = heard(ada, project_id, cursor=first["next_cursor"])
    assert [item["sequence"] for item in first["items"] + rest["items"]] == [5, 4, 3, 2, 1]
    assert rest["next_cursor"] is None


def test_a_message_in_parts_comes_back_in_parts_and_is_found_by_their_text(
    app_db: Database, ada: Customer
) -> None:
    project_id = create(ada)
    parts = [
        {"type": "text", "text": "Look at this"},
        {"type": "image", "url": "https://example.com/a.png"},
        {"type": "tool", "text": None},
    ]
    assert say(ada, project_id, parts).body["content"] == parts
    assert heard(ada, project_id)["items"][0]["content"] == parts
    assert found(ada, "look") == [parts]
    assert found(ada, "example.com") == []


@pytest.mark.parametrize(
    "body",
    [
        {"role": "user"},
        {"role": "robot", "content": "x"},
        {"role": "user", "content": ""},
        {"role": "user", "content": []},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": "x" * 256 * 1024},
        {"role": "user", "content": "x", "sequence": 1},
    ],
)
def test_what_is_no_message_is_refused(app_db: Database, ada: Customer, body: dict[str, Any]) -> None:
    project_id = create(ada)
    assert send("POST", f"/v1/projects/{project_id}/messages", ada.token, body=body).status == 422
    assert heard(ada, project_id)["items"] == []


def test_a_conversation_is_its_own_peoples(app_db: Database, ada: Customer) -> None:
    project_id = create(ada, is_public=True)
    say(ada, project_id, "secret")
    bob = sign_up("user_bob")
    for answer in (
        say(bob, project_id, "hi"),
        send("GET", f"/v1/projects/{project_id}/messages", bob.token),
    ):
        assert (answer.status, answer.body["code"]) == (403, "forbidden")
    viewer = token("user_eve", org_id="org_acme", org_role="org:viewer")
    path = f"/v1/projects/{uuid4()}/messages"
    assert send("POST", path, viewer, body={"role": "user", "content": "x"}).status == 403
    assert send("GET", path, viewer).status == 404


def test_nothing_is_said_in_a_deleted_project(app_db: Database, ada: Customer) -> None:
    project_id = create(ada)
    send("DELETE", f"/v1/projects/{project_id}", ada.token)
    assert say(ada, project_id, "hello?").status == 404


def test_however_many_append_at_once_no_message_is_lost_and_none_has_anothers_number(
    database: Database,
) -> None:
    organization_id, project_id = seeded(database)

    def append(writer: int) -> list[int]:
        numbers = []
        for number in range(5):
            batch = [messages.NewMessage(role="user", content=f"{writer}.{number}.{n}") for n in range(2)]
            with counters.transaction(database, organization_id) as tx:
                added = messages.append(tx, project_id, batch, created_by=None)
            assert [message.content for message in added] == [message.content for message in batch]
            assert added[1].sequence == added[0].sequence + 1  # together
            numbers += [message.sequence for message in added]
        return numbers

    numbers = [number for written in counters.at_once(8, append) for number in written]
    assert sorted(numbers) == list(range(1, 81))
    stored = rows(database, "SELECT content FROM projects.messages ORDER BY sequence")
    assert len({row["content"] for row in stored}) == 80
    assert rows(database, "SELECT message_count FROM projects.projects") == [{"message_count": 80}]


def seeded(database: Database, **fields: Any) -> tuple[UUID, UUID]:
    organization_id = new_account(database)
    return organization_id, add_project(database, organization_id, **fields)


def add_project(database: Database, organization_id: UUID, **fields: Any) -> UUID:
    columns = {"organization_id": organization_id, "kind": "web", "title": "Fitness"} | fields
    statement = (
        f"INSERT INTO projects.projects ({', '.join(columns)}) "
        f"VALUES ({', '.join(['%s'] * len(columns))}) RETURNING id"
    )
    project_id: UUID = rows(database, statement, *columns.values())[0]["id"]
    return project_id


def test_a_conversation_can_be_had_as_one_json_array(app_db: Database, ada: Customer) -> None:
    project_id = UUID(create(ada))
    empty = UUID(create(ada))
    say(ada, str(project_id), "hello")
    say(ada, str(project_id), [{"type": "text", "text": "hi"}], role="assistant")

    def read(tx: db.Tx) -> dict[UUID, Any]:
        seen = tx.execute("SELECT project_id, messages FROM projects.conversations").fetchall()
        return {row["project_id"]: row["messages"] for row in seen}

    conversations = db.run(read, organization_id=ada.organization_id)
    assert conversations[empty] == []
    assert [(m["role"], m["content"]) for m in conversations[project_id]] == [
        ("user", "hello"),
        ("assistant", [{"type": "text", "text": "hi"}]),
    ]
    assert set(conversations[project_id][0]) == {"id", "role", "content", "createdAt"}
    assert db.run(read) == {project_id: [], empty: []}  # public projects, and nothing of what is said in them


# ---- search ----


def test_a_search_finds_text_whatever_its_case_and_takes_wildcards_for_themselves(
    app_db: Database, ada: Customer
) -> None:
    project_id = create(ada)
    for content in ("Grün is 100% fine", "100 percent", "snake_case", "snakeXcase", "back\\slash", "GRÜN!"):
        say(ada, project_id, content)
    assert found(ada, "grün") == ["Grün is 100% fine", "GRÜN!"]
    assert found(ada, "100%") == ["Grün is 100% fine"]
    assert found(ada, "SNAKE_C") == ["snake_case"]
    assert found(ada, "\\") == ["back\\slash"]
    assert found(ada, "%") == ["Grün is 100% fine"]
    assert found(ada, "_") == ["snake_case"]
    assert found(ada, "%%") == []
    assert found(ada, "nowhere") == []
    assert send("GET", "/v1/projects/search", ada.token).status == 422
    assert send("GET", "/v1/projects/search", ada.token, query={"q": " "}).status == 422


def test_a_search_shows_the_project_changed_last_first_and_twenty_at_a_time(
    app_db: Database, ada: Customer
) -> None:
    older, newer = create(ada, "Older"), create(ada, "Newer")
    for number in range(15):
        say(ada, newer, f"word {number} of newer")
        say(ada, older, f"word {number} of older")
    send("PATCH", f"/v1/projects/{newer}", ada.token, body={"title": "Newest"})
    first = send("GET", "/v1/projects/search", ada.token, query={"q": "WORD"}).body
    assert [item["project"]["title"] for item in first["items"]] == ["Newest"] * 15 + ["Older"] * 5
    rest = send(
        "GET", "/v1/projects/search", ada.token, query={"q": "WORD", "cursor": first["next_cursor"]}
    ).body
    assert [item["message"]["content"] for item in rest["items"]] == [
        f"word {number} of older" for number in range(5, 15)
    ]
    assert rest["next_cursor"] is None
    forged = send("GET", "/v1/projects/search", ada.token, query={"q": "WORD", "cursor": "WzEsMl0"})
    assert forged.status == 422


def test_a_search_finds_nothing_deleted_and_nothing_of_others(app_db: Database, ada: Customer) -> None:
    deleted, kept = create(ada), create(ada)
    bob = sign_up("user_bob")
    earlier, later = create(bob, is_public=True), create(bob, is_public=True)
    for customer, project_id in ((bob, earlier), (ada, deleted), (ada, kept), (bob, later)):
        say(customer, project_id, f"needle {project_id}")
    send("DELETE", f"/v1/projects/{deleted}", ada.token)
    assert found(ada, "needle") == [f"needle {kept}"]
    assert [found(ada, project_id) for project_id in (deleted, earlier, later)] == [[], [], []]


SOURCES_QUERY = """
    SELECT p.id AS project_id, (m.value ->> 'id')::uuid AS id
    FROM projects.projects AS p
    JOIN projects.conversations AS c ON c.project_id = p.id
    CROSS JOIN jsonb_array_elements(c.messages) WITH ORDINALITY AS m (value, number)
    WHERE p.organization_id = %s AND m.value ->> 'content' ILIKE %s AND p.deleted_at IS NULL
    ORDER BY p.updated_at DESC, p.id DESC, m.number
"""


def test_a_search_answers_the_rows_of_a_plain_search_through_everything(app_db: Database) -> None:
    """Rare words, common ones and those in between: by whichever way they are looked for."""
    luck = random.Random(5)
    ours, theirs = new_account(app_db), new_account(app_db)
    weights = {
        "common": 0.9,
        "frequent": 0.2,
        "seldom": 0.02,
        "rare": 0.002,
        "100%": 0.01,
        "a_b": 0.05,
        "İzmir": 0.01,
    }
    for organization_id in (ours, theirs):
        for number in range(30):
            project_id = add_project(
                app_db, organization_id, title=f"P{number}", deleted_at="now()" if number % 7 == 3 else None
            )
            batch = [
                messages.NewMessage(
                    role="user",
                    content=" ".join(
                        ["x", *(w.title() for w, weight in weights.items() if luck.random() < weight)]
                    ),
                )
                for _ in range(luck.randint(0, 60))
            ]
            insert(app_db, organization_id, project_id, batch)
    for text in (
        *weights,
        "x",
        "%",
        "_",
        "m",
        "om",
        "ab",
        "nothing",
        "common frequent",
        "X COMMON",
        "l 1",
        "漢 é",
        "izmir",
    ):
        expected = rows(app_db, SOURCES_QUERY, ours, db.containing(text))
        assert all_pages(ours, text) == [(row["project_id"], row["id"]) for row in expected], text


def test_a_search_reads_no_other_organisations_part_of_the_index(app_db: Database) -> None:
    """Of a text without three letters in a row the trigram index knows nothing, and would be read whole."""
    ours, theirs = new_account(app_db), new_account(app_db)
    insert(
        app_db, ours, add_project(app_db, ours), [messages.NewMessage(role="user", content="Make it blue")]
    )
    crowded = add_project(app_db, theirs)
    with app_db.connect() as owner:
        owner.execute(
            """
            INSERT INTO projects.messages (organization_id, project_id, sequence, role, content)
            SELECT %(organization_id)s, %(project_id)s, n, 'user', md5(n::text) || ' ' || md5((-n)::text)
            FROM generate_series(1, 3000) AS n
            """,
            {"organization_id": theirs, "project_id": crowded},
        )
        owner.execute("ANALYZE projects.messages")
        [index] = owner.execute(
            "SELECT pg_relation_size('projects.messages_trigrams') / 8192 AS pages"
        ).fetchall()
        for text in ("qz", "q", "- -", "é", "%", "a_", "zq", "nothing", "no t"):
            for _ in range(7):  # by then a session has settled on its plans
                [read] = owner.execute(
                    """
                    EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
                    SELECT * FROM projects.search_messages(%s, %s, 20)
                    """,
                    [ours, db.containing(text)],
                ).fetchall()
            assert read["QUERY PLAN"][0]["Plan"]["Shared Hit Blocks"] < index["pages"] / 4, text


def insert(
    database: Database, organization_id: UUID, project_id: UUID, batch: list[messages.NewMessage]
) -> None:
    with counters.transaction(database, organization_id, "owner") as tx:
        numbered = [(organization_id, project_id, n, m.text) for n, m in enumerate(batch, start=1)]
        tx.execute("UPDATE projects.projects SET message_count = %s WHERE id = %s", [len(batch), project_id])
        tx.cursor().executemany(
            """
            INSERT INTO projects.messages (organization_id, project_id, sequence, role, content)
            VALUES (%s, %s, %s, 'user', %s)
            """,
            numbered,
        )


def all_pages(organization_id: UUID, text: str) -> list[tuple[UUID, UUID]]:
    seen: list[tuple[UUID, UUID]] = []
    after = None
    while items := message_search.search(organization_id, text, after=after, limit=20):
        assert len(items) <= 20
        seen += [(item.project.id, item.message.id) for item in items]
        after = message_search.position(items[-1])
    return seen
