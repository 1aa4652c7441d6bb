"""What is said where a package is not installed that an integration is for."""

from __future__ import annotations

from archir.errors import GrowError


def not_installed(module: str, extra: str, error: ImportError) -> GrowError:
    """Return the error for an integration whose package cannot be imported.

    Args:
        module: its name.
        extra: the extra that installs it.
        error: what was raised.
    """
    return GrowError(
        f"{module} needs packages that are not installed",
        why=str(error),
        hint=f'pip install "archir[{extra}]"',
    )
