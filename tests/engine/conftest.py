"""Workers that connect to each other, for the tests of their rings."""

import pytest
from support.ring_workers import RingWorker, forget, place_of, retire

from meshnode.network.certificates import make_credentials


@pytest.fixture(scope="session")
def credentials():
    return make_credentials()


@pytest.fixture(scope="module")
def three(credentials):
    found = [RingWorker(place_of(credentials)) for _ in range(3)]
    yield found
    retire(*found)


@pytest.fixture
def workers(three):
    """Three workers without a link."""
    yield three
    forget(*three)
