"""How many files may be open in the worker, and in Triton, which inherits it: each connection of a caller is one."""

from __future__ import annotations

import resource

MOST = 65_536
"""Asked for at most: where there is no limit, programs that walk over all files they may have take for ever."""


def raise_open_file_limit() -> None:
    """Raise this process's soft limit, usually 1024, to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
