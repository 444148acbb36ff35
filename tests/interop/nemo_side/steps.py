"""What NeMo does with a checkpoint, one step a process, in NeMo's environment.

python steps.py load NEMO INPUTS OUT
    NeMo loads the checkpoint NEMO and runs its model on INPUTS, in float32. OUT then holds tensors.safetensors, the
    model's state by NeMo's names and `logits`, and nemo/, the checkpoint that NeMo saves of it.
python steps.py import HF NEMO
    NeMo's importer makes the checkpoint NEMO of the Hugging Face directory HF.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import no_gpu  # noqa: F401  (before NeMo)
import tiny_mllama  # noqa: F401
import torch
from lightning.pytorch.trainer.states import TrainerFn
from nemo.collections import vlm
from nemo.collections.vlm.qwen2vl.model.qwen2vl import HFQwen2VLImporter
from nemo.lightning import MegatronStrategy, Trainer
from nemo.lightning.io.connector import ModelConnector
from nemo.lightning.io.pl import TrainerContext
from safetensors.torch import load_file, save_file
from transformers import AutoConfig


class Importer(HFQwen2VLImporter):
    """NeMo's, for which every vision tower has 32 layers of 1280: here it has the sizes that config.json states."""

    @property
    def config(self) -> vlm.Qwen2VLConfig:
        theirs, stated = super().config, AutoConfig.from_pretrained(str(self)).vision_config
        precision = {name: getattr(theirs, name) for name in ("fp16", "bf16", "params_dtype")}
        width = stated.hidden_size if self._is_2_5(theirs) else stated.embed_dim
        more = {"fullatt_block_indexes": list(stated.fullatt_block_indexes)} if self._is_2_5(theirs) else {}
        inner = stated.intermediate_size if self._is_2_5(theirs) else int(width * stated.mlp_ratio)
        vision = type(theirs.vision_transformer_config)(
            num_layers=stated.depth,
            hidden_size=width,
            embed_dim=width,
            num_attention_heads=stated.num_heads,
            num_query_groups=stated.num_heads,
            kv_channels=width // stated.num_heads,
            ffn_hidden_size=inner,
            **more,
            **precision,
        )
        return vlm.Qwen2VLConfig(
            language_transformer_config=theirs.language_transformer_config,
            vision_transformer_config=vision,
            vision_projection_config=theirs.vision_projection_config,
            vision_feature_layer=theirs.vision_feature_layer,
            **precision,
        )

    def init(self) -> vlm.Qwen2VLModel:
        config = self.config
        version = "qwen25-vl" if self._is_2_5(config) else "qwen2-vl"
        return vlm.Qwen2VLModel(config, model_version=version, tokenizer=self.tokenizer)

    @staticmethod
    def _is_2_5(config: vlm.Qwen2VLConfig) -> bool:
        return isinstance(config.vision_transformer_config, vlm.Qwen25VLVisionConfig)


def load(checkpoint: Path, inputs: Path, out: Path) -> None:
    strategy = MegatronStrategy(ddp="pytorch", setup_optimizers=False, ckpt_save_optimizer=False)
    trainer = Trainer(devices=1, accelerator="cpu", strategy=strategy)
    wrapped, _ = ModelConnector(str(checkpoint)).nemo_load(checkpoint, trainer)
    model = wrapped.module
    while hasattr(model, "module"):
        model = model.module
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("_extra_state")}
    state = {name: value.clone().contiguous() for name, value in state.items()}
    _save(trainer, out / "nemo")
    save_file({**state, "logits": _logits(model, load_file(inputs))}, out / "tensors.safetensors")


@torch.inference_mode()
def _logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    masks = {"attention_mask": None} if takes_mask else {}
    logits: torch.Tensor = model.float().eval()(**inputs, **masks)
    return logits[0].float().contiguous()


def _save(trainer: Any, path: Path) -> None:
    """As ModelConnector.nemo_save does, without setting the strategy up a second time."""
    trainer.state.fn = TrainerFn.FITTING
    trainer.save_checkpoint(path)
    if getattr(trainer.strategy, "async_save", False):
        trainer.strategy.checkpoint_io.maybe_finalize_save_checkpoint(blocking=True)
    TrainerContext.from_trainer(trainer).io_dump(path / "context", yaml_attrs=["model"])


if __name__ == "__main__":
    step, *paths = sys.argv[1:]
    if step == "load":
        load(*map(Path, paths))
    elif step == "import":
        source, target = paths
        Importer(source).apply(Path(target))
    else:
        sys.exit(f"no such step: {step}")
