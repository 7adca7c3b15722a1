"""What every test file shares. The database comes from tests/embedded.py, which has to be loaded earlier than a conftest.py is."""

import pytest

from tests.world import World


@pytest.fixture
def world(db, client):
    """The stage of a story; any message that arrived and nobody expected fails the test."""
    stage = World(client)
    yield stage
    stage.silence()
