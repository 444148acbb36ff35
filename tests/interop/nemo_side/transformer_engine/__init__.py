"""A stand-in for NVIDIA's Transformer Engine, which needs a GPU: what megatron-core 0.15's wrappers of it use.

Names and shapes of parameters and the content of ``_extra_state`` are those of Transformer Engine 2 without FP8 on one
rank, so megatron-core's own sharded_state_dict names what it would name with the real one.
"""

from . import common, pytorch

__all__ = ["common", "pytorch"]
__version__ = "2.6.0"
