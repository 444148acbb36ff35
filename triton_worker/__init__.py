"""The worker: Triton in front, our own engine behind, one NeMo 2.0 (or Hugging Face) checkpoint between them."""
