"""What NeMo 2.0's importers pass to the classes they build, from which `context/` is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from triton_worker.checkpoint.fiddle_graph import Config, Symbol
from triton_worker.models.decoder.config import DecoderConfig

TOKENIZER_DIRECTORY = "nemo_tokenizer"
DEFAULT_SEQ_LENGTH = 4096

YamlDefaults = Mapping[str, Mapping[str, Any]]
"""For each part of the model's configuration: those defaults of NeMo's classes that a reader of model.yaml needs."""

LANGUAGE_DEFAULTS: dict[str, Any] = {
    "kv_channels": None,
    "mrope_section": None,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "seq_length": DEFAULT_SEQ_LENGTH,
}


def trainer_context(model: Config) -> Config:
    """The root object of io.json: the model, and the trainer that an import runs under."""
    strategy = Config(
        Symbol("nemo.lightning.pytorch.strategies.megatron_strategy", "MegatronStrategy"),
        {"ckpt_save_optimizer": False, "kwargs": {"always_save_context": True}},
    )
    trainer = Config(
        Symbol("nemo.lightning.pytorch.trainer", "Trainer"),
        {"accelerator": "cpu", "strategy": strategy, "devices": 1},
    )
    context = Symbol("nemo.lightning.io.pl", "TrainerContext")
    return Config(context, {"model": model, "trainer": trainer, "extra": {}})


def with_defaults(model: dict[str, Any], defaults: YamlDefaults) -> dict[str, Any]:
    """The model node with `defaults` in its configuration."""
    parts = model["config"]
    for name, fields in defaults.items():
        parts[name] = {**fields, **parts[name]}
    return model


def parallelism(precision: dict[str, Any]) -> dict[str, Any]:
    """The fields of megatron-core's ModelParallelConfig, which an import passes on."""
    return {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_comm_backend": None,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "sequence_parallel": False,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": None,
        "moe_extended_tp": False,
        **precision,
        "use_te_rng_tracker": False,
        "pipeline_dtype": None,
        "microbatch_group_size_per_vp_stage": 1,
        "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": None,
        "pipeline_model_parallel_layout": None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
    }


def precision_of(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "fp16": dtype == torch.float16,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": Symbol("torch", str(dtype).removeprefix("torch.")),
    }


def language(target: Symbol, text: DecoderConfig, precision: dict[str, Any], seq_length: int) -> Config:
    # NeMo's importer leaves the length to NeMo's default, and the model then serves no longer context than that.
    length = {} if seq_length == DEFAULT_SEQ_LENGTH else {"seq_length": seq_length}
    arguments = {
        **precision,
        "num_layers": text.num_layers,
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_heads,
        "num_query_groups": text.num_kv_heads,
        "ffn_hidden_size": text.intermediate_size,
        "layernorm_epsilon": text.norm_eps,
        "gated_linear_unit": True,
        "init_method_std": 0.02,
        "share_embeddings_and_output_weights": text.tied_embeddings,
        # The largest power of two up to 128 that divides the vocabulary, so that NeMo pads nothing.
        "make_vocab_size_divisible_by": math.gcd(text.vocab_size, 128),
        "rotary_base": text.rope_theta,
        "vocab_size": text.vocab_size,
        **length,
    }
    return Config(target, arguments)


def projection(arguments: dict[str, Any], precision: dict[str, Any]) -> Config:
    return Config(Symbol("nemo.collections.vlm.vision.base", "MultimodalProjectorConfig"), {**precision, **arguments})


def tokenizer() -> Config:
    return Config(
        Symbol("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"),
        {"pretrained_model_name": TOKENIZER_DIRECTORY},
    )


def optimizer() -> Config:
    """NeMo's default optimizer, which an import carries along unused."""
    float32 = Symbol("torch", "float32")
    arguments: dict[str, Any] = {
        "optimizer": "adam", "lr": 0.0001, "min_lr": None, "decoupled_lr": None, "decoupled_min_lr": None,
        "weight_decay": 0.01, "fp8_recipe": None, "fp16": False, "bf16": False,
        "reuse_grad_buf_for_mxfp8_param_ag": False, "params_dtype": float32, "use_precision_aware_optimizer": False,
        "store_param_remainders": True, "main_grads_dtype": float32, "main_params_dtype": float32,
        "exp_avg_dtype": float32, "exp_avg_sq_dtype": float32,
        "loss_scale": None, "initial_loss_scale": 4294967296, "min_loss_scale": 1.0, "loss_scale_window": 1000,
        "hysteresis": 2, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-08, "decoupled_weight_decay": True,
        "sgd_momentum": 0.9, "use_distributed_optimizer": True, "overlap_param_gather": False,
        "overlap_param_gather_with_optimizer_step": False, "optimizer_cpu_offload": False,
        "optimizer_offload_fraction": 0.0, "use_torch_optimizer_for_cpu_offload": False,
        "overlap_cpu_optimizer_d2h_h2d": False, "pin_cpu_grads": True, "pin_cpu_params": True, "clip_grad": 1.0,
        "log_num_zeros_in_grad": False, "barrier_with_L1_time": False, "timers": None, "config_logger_dir": "",
    }  # fmt: skip
    config = Config(Symbol("megatron.core.optimizer.optimizer_config", "OptimizerConfig"), arguments)
    return Config(Symbol("nemo.lightning.pytorch.optim.megatron", "MegatronOptimizerModule"), {"config": config})
