"""The family's prompts, which are those of its sibling."""

from triton_worker.models.qwen_vl.prompts import TOKENIZER, prompt_format

__all__ = ["TOKENIZER", "prompt_format"]
