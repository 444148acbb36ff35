"""The decoder of the Llama and Qwen2 models, which every family here puts behind its vision tower."""
