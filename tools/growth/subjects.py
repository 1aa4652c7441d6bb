"""The tasks of the study, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tools.growth.images import residual, vgg
from tools.growth.segmentation import unet
from tools.growth.table import table
from tools.growth.tasks import Task
from tools.growth.text import text

ON_IMAGES: Mapping[str, Callable[[str], Task]] = {"residual": residual, "vgg": vgg}
"""The tasks on CIFAR-10, which takes a file."""

OTHERS: Mapping[str, Callable[[], Task]] = {"text": text, "table": table, "unet": unet}
"""The tasks on data that are installed or made."""

TASKS = (*ON_IMAGES, *OTHERS)


def find_task(name: str, data: str | None = None) -> Task:
    """Return a task.

    Args:
        name: one of `TASKS`.
        data: spec of CIFAR-10, as `archir.growing.data.load_data` takes it.

    Raises:
        ValueError: there is no such task, or it needs data that are not given.
    """
    if name in OTHERS:
        return OTHERS[name]()
    if name not in ON_IMAGES:
        raise ValueError(f"there is no task {name!r}, but {', '.join(TASKS)}")
    if data is None:
        raise ValueError(f"the task {name} is on CIFAR-10: give its files by --data")
    return ON_IMAGES[name](data)
