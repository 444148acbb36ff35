"""Where the tests of the engine compute: on the GPU where there is one. ``CUDA_VISIBLE_DEVICES=`` keeps them off it."""

import torch

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
