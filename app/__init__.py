"""The gateway: HTTP in front, the worker behind (through :mod:`protocol`), and no torch anywhere."""

__version__ = "0.1.0"
