"""What Qwen2-VL (arXiv:2409.12191) and Qwen2.5-VL (arXiv:2502.13923) have in common: all but the tower's blocks."""
