"""What tells that a make, whose child the stack is, was told to stop."""

import os
import signal
from collections.abc import Iterator

import pytest
from local import lifetime


@pytest.fixture
def interrupt() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupt")
def test_a_handler_that_was_taken_back_is_seen_from_outside() -> None:
    mask = 1 << (signal.SIGINT - 1)
    signal.signal(signal.SIGINT, lambda *_: None)
    assert lifetime._caught(os.getpid()) & mask

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    assert not lifetime._caught(os.getpid()) & mask


def test_a_process_that_is_gone_catches_nothing() -> None:
    assert lifetime._caught(2**22 + 1) == 0  # above the kernel's highest process id
