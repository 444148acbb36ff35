"""The one error that reading a checkpoint can end in."""


class CheckpointError(Exception):
    """A checkpoint cannot be used. The message is one sentence that names the file and says what was expected of it."""
