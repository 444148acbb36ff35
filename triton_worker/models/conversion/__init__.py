"""Checkpoints from one layout to another, tensor by tensor and bit for bit: what the families' conversions share."""
