"""The benchmark runs and fills its table; what it measures is nobody's promise."""

from benchmarks.engine_alone import EngineAlone
from benchmarks.gateway import Bench, parse, rows
from benchmarks.parts import ENGINE, FRONT, GATEWAY, TRITON
from tests.e2e.deployment import FIXTURE, Deployment


async def test_every_row_has_a_result(tiny: Deployment) -> None:
    options = parse(["--rounds", "1", "--output_tokens", "3"])
    with EngineAlone(FIXTURE) as engine:
        ((alone,), (served,)) = await Bench(options, tiny, engine).compare(3)
    assert [timing.completion_tokens for timing in (*alone.results, *served.results)] == [3] * 30
    assert all(served.cpu(part) > 0 for part in (GATEWAY, TRITON, FRONT, ENGINE))
    table = list(rows(3, [alone], [served]))
    assert len(table) == 11
    assert all(result for _, _, result, _ in table)
