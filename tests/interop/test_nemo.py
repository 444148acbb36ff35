"""NeMo's own code beside ours, in both directions: nemo-toolkit 2.7.3 and megatron-core 0.15.0 on a CPU.

NeMo's modules stand on Transformer Engine, which needs a GPU; nemo_side/transformer_engine stands in for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interop.families import LLAVA, MLLAMA, QWEN2_5_VL, QWEN2_VL, Family, save_clip_tower
from tests.interop.nemo import Loaded, import_from_huggingface, load, stored_state
from tests.triton_worker.models.conftest import one_thread as one_thread
from tests.triton_worker.models.llava import TOWER
from tests.triton_worker.models.mllama import INTERMEDIATE_LAYERS
from tests.triton_worker.models.reference import engine_greedy
from tests.triton_worker.models.test_llava import plain_name
from triton_worker.checkpoint import open_checkpoint
from triton_worker.convert import main
from triton_worker.models.llava import config as llava_config
from triton_worker.models.mllama import config as mllama_config
from triton_worker.models.registry import load_model

NEW_TOKENS = 12

pytestmark = [
    pytest.mark.timeout(2000),
    pytest.mark.skipif(
        "NEMO_PYTHON" not in os.environ,
        reason="needs NeMo in an environment of its own: `make test-nemo-interop` makes it and runs these",
    ),
]


@dataclass(frozen=True)
class Exchange:
    """A model of a family in Hugging Face's layout, our checkpoint of it, and what NeMo made of that."""

    family: Family
    source: Path
    ours: Path
    loaded: Loaded


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    """NeMo stores a CLIP tower's name and not its sizes: here is one more name. It states sizes of another itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(llava_config.CLIP_TOWERS, "tiny-clip", TOWER)
        patch.setitem(mllama_config.NEMO_TOWER, "hidden_size", 32)
        patch.setitem(mllama_config.NEMO_TOWER, "intermediate_layers", tuple(INTERMEDIATE_LAYERS))
        yield


@pytest.fixture(scope="module", params=[QWEN2_5_VL, QWEN2_VL, LLAVA, MLLAMA], ids=lambda family: family.name)
def exchange(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    family, place = request.param, tmp_path_factory.mktemp(request.param.name)
    source = family.source(place / "source")
    main(["hf-to-nemo", str(source), str(place / "ours")])
    save_clip_tower(place / "openai" / "tiny-clip")
    loaded = load(place / "ours", family.nemo_inputs(source, family.prompt), place / "loaded")
    return Exchange(family, source, place / "ours", loaded)


@pytest.fixture(scope="module", params=[QWEN2_5_VL, QWEN2_VL], ids=lambda family: family.name)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path, Path]:
    """A family, its model, and the checkpoint that NeMo's importer made of it."""
    family, place = request.param, tmp_path_factory.mktemp(f"imported_{request.param.name}")
    source = family.source(place / "source")
    # There and back: in the form of transformers 4, which NeMo's importer reads.
    main(["hf-to-nemo", str(source), str(place / "ours")])
    main(["nemo-to-hf", str(place / "ours"), str(place / "hf")])
    return family, source, import_from_huggingface(place / "hf", place / "imported")


def test_nemo_loads_every_tensor_of_ours(exchange: Exchange) -> None:
    _assert_same_tensors(exchange.loaded.state, stored_state(exchange.ours))


def test_nemo_computes_what_transformers_computes(exchange: Exchange) -> None:
    expected, _ = exchange.family.expected(exchange.source, NEW_TOKENS)
    torch.testing.assert_close(exchange.loaded.logits, expected, atol=1e-4, rtol=0)


def test_we_serve_what_nemo_saved(exchange: Exchange) -> None:
    _assert_served(exchange.family, exchange.source, exchange.loaded.saved)


def test_what_nemo_saved_goes_back_to_hugging_face(exchange: Exchange, tmp_path: Path) -> None:
    main(["nemo-to-hf", str(exchange.loaded.saved), str(tmp_path / "hf")])
    _assert_back(exchange.source, tmp_path / "hf")


def test_we_serve_what_nemo_imported(imported: tuple[Family, Path, Path]) -> None:
    _assert_served(*imported)


def test_what_nemo_imported_goes_back_to_hugging_face(imported: tuple[Family, Path, Path], tmp_path: Path) -> None:
    _, source, checkpoint = imported
    main(["nemo-to-hf", str(checkpoint), str(tmp_path / "hf")])
    _assert_back(source, tmp_path / "hf")


def test_we_write_what_nemo_imports(imported: tuple[Family, Path, Path], tmp_path: Path) -> None:
    _, source, checkpoint = imported
    main(["hf-to-nemo", str(source), str(tmp_path / "ours")])
    _assert_same_tensors(stored_state(tmp_path / "ours"), stored_state(checkpoint), same_dtype=True)
    ours, theirs = (_context(path) for path in (tmp_path / "ours", checkpoint))
    assert ours == theirs


def _assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor], same_dtype: bool = False) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        # float32 holds every number of bfloat16: NeMo makes conv1 without a dtype.
        assert torch.equal(ours[name].float(), tensor.float()), name
        assert not same_dtype or ours[name].dtype == tensor.dtype, name


def _assert_served(family: Family, source: Path, checkpoint: Path) -> None:
    model = load_model(open_checkpoint(checkpoint), torch.float32, torch.device("cpu"))
    _, tokens = family.expected(source, NEW_TOKENS)
    assert engine_greedy(model, [family.prompt], NEW_TOKENS) == [tokens]


def _assert_back(source: Path, converted: Path) -> None:
    ours, theirs = (_by_plain_name(path) for path in (converted, source))
    _assert_same_tensors(ours, theirs)


def _by_plain_name(directory: Path) -> dict[str, Tensor]:
    weights = open_checkpoint(directory).weights
    return {plain_name(name): weights.read(name) for name in weights.names}


def _context(checkpoint: Path) -> Any:
    """io.json, without the name of the tokenizer's directory, which is that of what was imported."""
    text = (checkpoint / "context" / "io.json").read_text()
    return json.loads(text.replace('"nemo_tokenizer"', '"hf"'))
