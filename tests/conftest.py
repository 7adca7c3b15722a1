"""What every test file shares. The database comes from tests/embedded.py, which has to be loaded earlier than a conftest.py is."""

import pytest
from hypothesis import HealthCheck, settings

from channels_app import policy
from tests.world import World

# How long an example takes says how busy the machine is, and nothing about what it proves.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def world(db, client, monkeypatch):
    """The stage of a story; any message that arrived and nobody expected fails the test."""
    monkeypatch.setattr(policy, "STALE", policy.STALEST)  # a machine that stands still for a second changes no story
    stage = World(client)
    yield stage
    stage.silence()
