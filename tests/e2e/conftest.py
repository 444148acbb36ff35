from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.deployment import DEMO, Deployment, deployed


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The fixture checkpoint: random weights, so every answer is as arbitrary as it is repeatable."""
    with deployed(tmp_path_factory.mktemp("tiny")) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The demo checkpoint, which knows what it sees."""
    with deployed(tmp_path_factory.mktemp("demo"), checkpoint=DEMO) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def seeds_way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The fixture checkpoint under flags of the seed whose effect only Triton shows; its engine may be killed."""
    with deployed(tmp_path_factory.mktemp("seed"), "-tmv", "3", "-mbs", "2", "-ibts", "50", "-dm") as deployment:
        yield deployment


@pytest.fixture
def client(tiny: Deployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny.url, timeout=60) as client:
        yield client
