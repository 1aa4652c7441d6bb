"""The program `archir`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from archir.cli import graph_commands, run_commands
from archir.cli.console import print_error
from archir.cli.lazy import LazyModule
from archir.errors import ArchirError, FileError, Told

if TYPE_CHECKING:
    import archir.ir.device_memory as device_memory
else:
    device_memory = LazyModule("archir.ir.device_memory")


class Commands(TyperGroup):
    """The commands; errors of archir, of the disk and of memory are printed as messages, with exit code 1."""

    def invoke(self, ctx: Any) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # who reads has had enough: nothing to say, and nobody to say it to
            raise
        except (ArchirError, OSError, MemoryError, RecursionError, RuntimeError) as error:
            told = _told(error)
            if told is None or ctx.params.get("traceback"):
                raise
            if not _is_told(error):
                print_error(told)
            raise typer.Exit(1) from error


def _told(error: Exception) -> ArchirError | None:
    """Return an error as archir tells it, None where it is a fault of archir's own."""
    if isinstance(error, ArchirError):
        return error
    if isinstance(error, OSError):
        return FileError(error.strerror or str(error), where=str(error.filename or ""))
    if isinstance(error, RecursionError):
        return ArchirError("this is nested too deep", hint="see where by archir --traceback")
    if device_memory.is_out_of_memory(error):
        return ArchirError("there is not enough memory", why=str(error), hint="give it less at once")
    return None


def _is_told(error: Exception) -> bool:
    """Say whether another process of a run tells of an error."""
    return isinstance(error.__cause__, Told)


app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False
)
graph_commands.register(app)
run_commands.register(app)


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in archir an error comes from.")] = False,
) -> None:
    """Trace, inspect, rewrite, score, grow and emit neural-network architectures."""


def main() -> None:
    """Run the program."""
    app()
