"""Kernels in Triton-lang for CUDA; the plain PyTorch of the models is what they are tested against."""
