"""The soak of ``benchmarks/soak.py``, bounded: many streams, each with the answer that it gets alone."""

import pytest

from benchmarks.conversations import conversations
from benchmarks.soak import Soak
from tests.e2e.deployment import Deployment


@pytest.mark.timeout(240)
async def test_a_crowd_is_answered_as_each_is_alone(demo: Deployment) -> None:
    findings = await Soak(demo, streams=48, seconds=8.0, conversations=conversations(12)).run()
    assert findings.failures == []
    assert findings.answered > 0
    assert findings.vanished > 0
