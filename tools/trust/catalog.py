"""The attacks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tools.trust.archives import ARCHIVES
from tools.trust.attack import Attack
from tools.trust.configs import CONFIGS
from tools.trust.data_files import DATA
from tools.trust.kills import KILLS
from tools.trust.names import NAMED, NAMED_MODULES
from tools.trust.nets import NETS
from tools.trust.onnx_files import ONNX
from tools.trust.runs import RUNS
from tools.trust.specs import SPECS
from tools.trust.texts import CALLED, TEXTS

ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {a.name: a for a in (ARCHIVES, TEXTS, CALLED, NAMED, NAMED_MODULES, SPECS, CONFIGS, RUNS, DATA, ONNX, KILLS, *NETS)}
)
"""Every attack by its name, in the order of the table."""
