"""Local clouds to test against.

`stack`: all of Backplane, as `make dev` starts it, on data of its own. `cloud`: the same, for the
test to start. `toys`: the gateway, the runtime and the Invoke API in this process, on a template
whose one function does what a test tells it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.local_cloud import Cloud, Toys, start_toys

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs what shares a stack or its data, so that there is one of each."""
    for item in items:
        if item.get_closest_marker("xdist_group") or HERE not in item.path.parents:
            continue
        for shared in ("stack", "cloud", "toys"):
            if shared in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(shared))
                break


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """All of Backplane, running. A test leaves it running, and makes users of its own."""
    cloud = Cloud(tmp_path_factory.mktemp("stack"))
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.forget()


@pytest.fixture(scope="session")
def cloud_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data = tmp_path_factory.mktemp("cloud") / "data"
    yield data
    Cloud(data).forget()


@pytest.fixture
def cloud(cloud_data: Path) -> Iterator[Cloud]:
    """A local cloud that the test starts and stops, on what the test before has left of the data."""
    cloud = Cloud(cloud_data)
    yield cloud
    cloud.end()


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    with start_toys(tmp_path_factory.mktemp("toys")) as toys:
        yield toys
