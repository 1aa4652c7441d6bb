"""Writes the widths that are expected of the models of the wide zoo: `python -m tools.record_widths [NAME ...]`.

Without names, of all of them. What changed is then for a person to read: `git diff tests/zoo/expected`.
"""

from __future__ import annotations

import argparse

from archir.axes.infer import infer_widths
from tests.models.wide.catalog import WIDE_ZOO
from tests.models.wide.recorded import EXPECTED, capture, listing, path_of


def main() -> None:
    """Write one file a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models, such as language/bert; all if not given")
    names: list[str] = parser.parse_args().names
    unknown = sorted(set(names) - set(WIDE_ZOO))
    if unknown:
        parser.error(f"no such models: {', '.join(unknown)}")
    EXPECTED.mkdir(exist_ok=True)
    for name in names or WIDE_ZOO:
        path_of(name).write_text(listing(infer_widths(capture(name))))
    if not names:
        for stale in set(EXPECTED.glob("*")) - set(map(path_of, WIDE_ZOO)):
            stale.unlink()


if __name__ == "__main__":
    main()
