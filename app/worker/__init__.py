"""The gateway's side of the contract in :mod:`protocol`: one connection to the worker behind one Triton."""
