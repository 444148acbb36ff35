"""The benchmark runs and fills its table; what it measures is nobody's promise."""

import pytest
import torch

from benchmarks.engine import Bench, parse, rows

SMALL = ["--shape", "demo", "--device", "cpu", "--dtype", "float32", "--picture", "56x84", "--context", "20"]
FEW = ["--batches", "1,3", "--in_flight", "2", "--rounds", "2", "--output_tokens", "3", "--steps", "2"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_every_row_has_a_result() -> None:
    bench = Bench(parse([*SMALL, *FEW, "--max_prefill_tokens", "16", "--huggingface"]))
    table = list(rows(bench))
    assert len(table) == 3 + 2 + 3 + 4 + 2
    assert all(measured for _, measured, _ in table)
    assert not bench.engine.has_work
    counters = bench.engine.status.counters
    assert (counters.picture_queries, counters.picture_hits) == (15, 5)  # those that were asked about again
