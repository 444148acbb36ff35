"""How many files may be open: each connection is one, and the usual limit of 1024 is less than what is let in."""

from __future__ import annotations

import logging
import resource

from app.connection import HARD_LIMIT
from app.settings import Settings

MOST = 65_536
"""Asked for by default: where there is no limit, programs that walk over all files they may have take for ever."""
BESIDE_CONNECTIONS = 256
"""Lines to workers, pictures that are fetched, bodies on disk."""

logger = logging.getLogger(__name__)


def raise_open_file_limit(settings: Settings) -> None:
    """Raises this process's soft limit towards the hard one, and warns when that is too low for ``settings``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = HARD_LIMIT * settings.max_connections + BESIDE_CONNECTIONS
    wanted = max(needed, MOST)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        logger.warning(
            "%d files may be open at once, but max_connections %d may need %d: raise the hard limit "
            "(ulimit -Hn, LimitNOFILE) or lower --max_connections.",
            hard,
            settings.max_connections,
            needed,
        )
