"""The gateway's side of the contract in :mod:`protocol`: a connection to each worker, and the choice among them."""
