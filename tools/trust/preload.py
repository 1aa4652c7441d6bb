"""Imported once by the process that workers are forked from, so that each of them starts warm."""

from __future__ import annotations

import torch
import torch._inductor.codecache

import tools.trust.catalog  # noqa: F401  the attacks, too, are loaded once
from tools.trust.sound import warm_up

torch.set_num_threads(1)  # before anything is computed: a process with threads is not to be forked
warm_up()
