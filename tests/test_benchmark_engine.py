"""The benchmark runs and fills its table; what it measures is nobody's promise."""

from pathlib import Path

import pytest
import torch

from benchmarks.engine import compare, parse, rows
from benchmarks.engine_steps import SteppedEngine
from benchmarks.huggingface import Difference, HuggingFace
from benchmarks.kernel_times import write_kernel_times

SMALL = ["--device", "cpu", "--dtype", "float32", "--picture", "56x84", "--context", "20", "--max_prefill_tokens", "16"]
FEW = ["--batches", "1,3", "--in_flight", "2", "--rounds", "2", "--output_tokens", "3", "--steps", "2"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def engine_of(shape: str, *more: str) -> SteppedEngine:
    return SteppedEngine(parse(["--shape", shape, *SMALL, *FEW, *more]))


def test_every_row_has_a_result(tmp_path: Path) -> None:
    engine = engine_of("demo")
    pace, right = compare(engine)
    assert right
    table = list(rows(engine, pace))
    assert len(table) == 3 + 2 + 3 + 2 * 2
    assert all(measured for _, measured, _, _ in table)
    assert not engine.engine.has_work
    write_kernel_times(engine, tmp_path / "kernels")
    assert (tmp_path / "kernels").read_text().count("aten::") > 20


@pytest.mark.parametrize("shape", ["demo", "tiny"])
def test_wrong_weights_are_found_out(shape: str) -> None:
    engine = engine_of(shape)
    assert HuggingFace(engine).difference().acceptable
    engine.model.decoder.layers[1].output_proj.weight[:8] *= 1.5
    difference = HuggingFace(engine).difference()
    assert not difference.acceptable
    assert difference.theirs == 0  # in float32


def test_what_rounding_explains_is_acceptable() -> None:
    assert Difference(ours=0.02, theirs=0.01).acceptable
    assert not Difference(ours=0.2, theirs=0.01).acceptable
