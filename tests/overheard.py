"""What is said to the database through backplane.db, by a cursor or without one."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from backplane.session import Session
from backplane.slow_log import TimedCursor

WAYS = ((TimedCursor, "execute"), (Session, "ask"), (Session, "command"))


@contextmanager
def hearing(hear: Callable[[Any, Any], None]) -> Iterator[None]:
    """`hear(query, params)` before each statement of what runs inside."""

    def overheard(say: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(say)
        def saying(session: Any, query: Any, *params: Any, **options: Any) -> Any:
            hear(query, params[0] if params else None)
            return say(session, query, *params, **options)

        return saying

    with ExitStack() as patched:
        for kind, name in WAYS:
            patched.enter_context(patch.object(kind, name, overheard(getattr(kind, name))))
        yield
