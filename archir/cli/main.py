"""The program `archir`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from archir.cli import graph_commands, run_commands
from archir.cli.console import print_error
from archir.errors import ArchirError


class Commands(TyperGroup):
    """The commands; errors of archir are printed as messages, with exit code 1."""

    def invoke(self, ctx: Any) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ArchirError as error:
            if ctx.params.get("traceback"):
                raise
            print_error(error)
            raise typer.Exit(1) from error


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
