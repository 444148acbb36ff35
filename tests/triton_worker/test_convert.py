"""``python -m triton_worker.convert``: there and back, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.triton_worker.checkpoint.stored import HF_FIXTURE, NEMO_FIXTURE
from triton_worker.checkpoint import open_checkpoint
from triton_worker.convert import main
from triton_worker.models.qwen2_5_vl.conversion import write_huggingface

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def from_nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What NeMo's own importer wrote, as a Hugging Face checkpoint again."""
    directory = tmp_path_factory.mktemp("converted") / "hf"
    main(["nemo-to-hf", str(NEMO_FIXTURE), str(directory)])
    return directory


def assert_same_weights(ours: Path, theirs: Path = HF_FIXTURE) -> None:
    left, right = open_checkpoint(ours).weights, open_checkpoint(theirs).weights
    assert set(left.names) == set(right.names)
    for name in right.names:
        assert left.dtype(name) == right.dtype(name)
        assert torch.equal(left.read(name), right.read(name)), name


def test_nemo_to_hf_gives_the_tensors_that_nemo_imported(from_nemo: Path) -> None:
    assert_same_weights(from_nemo)


def test_there_and_back(tmp_path: Path) -> None:
    main(["hf-to-nemo", str(HF_FIXTURE), str(tmp_path / "nemo")])
    main(["nemo-to-hf", str(tmp_path / "nemo"), str(tmp_path / "hf")])
    assert_same_weights(tmp_path / "hf")
    main(["hf-to-nemo", str(tmp_path / "hf"), str(tmp_path / "again")])
    assert_same_weights(tmp_path / "again", tmp_path / "nemo")
    for name in ("io.json", "model.yaml"):
        once, twice = ((tmp_path / turn / "context" / name).read_text() for turn in ("nemo", "again"))
        assert once == twice


def test_config_says_what_the_original_says(from_nemo: Path) -> None:
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (from_nemo, HF_FIXTURE))
    assert ours.pop("vision_config").items() <= theirs["vision_config"].items()
    assert ours.items() <= theirs.items()


def test_transformers_takes_it_as_it_takes_the_original(from_nemo: Path) -> None:
    def logits(path: Path) -> torch.Tensor:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        with torch.inference_mode():
            output: torch.Tensor = model(input_ids=torch.arange(20)[None]).logits
        return output

    assert torch.equal(logits(from_nemo), logits(HF_FIXTURE))
    assert (from_nemo / "tokenizer.json").read_bytes() == (HF_FIXTURE / "tokenizer.json").read_bytes()


def test_a_large_model_is_several_files(tmp_path: Path) -> None:
    write_huggingface(open_checkpoint(NEMO_FIXTURE), tmp_path / "hf", shard_bytes=500_000)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2
    assert {path.name for path in files} == set(index["weight_map"].values())
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for path in files for t in load_file(path).values())
    assert_same_weights(tmp_path / "hf")
    main(["hf-to-nemo", str(tmp_path / "hf"), str(tmp_path / "nemo")])
    assert_same_weights(tmp_path / "nemo", NEMO_FIXTURE)


def test_picture_settings_are_the_published_ones_where_none_are_stored(tmp_path: Path) -> None:
    tokenizer = NEMO_FIXTURE / "context" / "nemo_tokenizer"
    assert not (tokenizer / "preprocessor_config.json").exists()
    main(["nemo-to-hf", str(NEMO_FIXTURE), str(tmp_path / "hf")])
    stored = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (stored["min_pixels"], stored["max_pixels"]) == (3136, 12845056)
    published = json.loads((HF_FIXTURE / "preprocessor_config.json").read_text())
    for name in stored.keys() - {"max_pixels"}:
        assert stored[name] == published[name]


@pytest.mark.parametrize(
    ("direction", "source", "sentence"),
    [
        ("hf-to-nemo", NEMO_FIXTURE, "is no Hugging Face checkpoint, which hf-to-nemo starts from."),
        ("nemo-to-hf", HF_FIXTURE, "is no NeMo 2.0 checkpoint, which nemo-to-hf starts from."),
        ("nemo-to-hf", ROOT / "nowhere", "does not exist"),
    ],
)
def test_what_cannot_be_converted_is_told(direction: str, source: Path, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exited:
        main([direction, str(source), str(tmp_path / "out")])
    assert sentence in str(exited.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        main(["nemo-to-hf", str(NEMO_FIXTURE), str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triton_worker.convert", "hf-to-nemo", str(HF_FIXTURE), str(tmp_path / "nemo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'nemo'} is written.\n"), done.stderr
    assert open_checkpoint(tmp_path / "nemo").layout == "nemo"
