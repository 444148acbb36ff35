"""The benchmark runs and fills its table; what it measures is nobody's promise."""

import pytest

from benchmarks.engine_alone import EngineAlone
from benchmarks.gateway import Bench, parse, rows
from benchmarks.parts import ENGINE, FRONT, GATEWAY, TRITON
from tests.e2e.deployment import FIXTURE, Deployment


@pytest.mark.parametrize("content", [[], ["--picture", "84x56"]], ids=["text", "picture"])
async def test_every_row_has_a_result(tiny: Deployment, content: list[str]) -> None:
    options = parse(["--rounds", "1", "--output_tokens", "3", *content])
    with EngineAlone(FIXTURE) as engine:
        ((alone,), (served,)) = await Bench(options, tiny, engine).compare(3)
    for loop in (alone, served):
        in_order = sorted(loop.results, key=lambda timing: timing.began)
        assert sorted(timing.completion_tokens for timing in in_order[:3]) == [1, 2, 3]  # out of step from here on
        assert [timing.completion_tokens for timing in in_order[3:]] == [3] * 12
    assert all(served.cpu(part) > 0 for part in (GATEWAY, TRITON, FRONT, ENGINE))
    table = list(rows(3, [alone], [served]))
    assert len(table) == 13
    assert all(result for _, _, result, _ in table)
