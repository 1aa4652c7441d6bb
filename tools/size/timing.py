"""Processor time, with no garbage left over from before."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def seconds(act: Callable[[], object]) -> float:
    """Return the processor time that something takes."""
    gc.collect()
    start = time.process_time()
    act()
    return time.process_time() - start
