"""The command ``anyres``.

Exit codes: 0 done, 1 failed, 2 wrong usage. An error that anyres raises on purpose is one message
on stderr; anything else is a bug and shows its traceback. Verbs import what they need when they
run, so that ``anyres --help`` answers at once.
"""

import sys
import warnings
from typing import Annotated

import typer

from anyres import __version__
from anyres.cli import benchmark, compare, doctor, evaluate, models, predict, scenes, train
from anyres.errors import AnyresError

app = typer.Typer(
    name="anyres",
    help="Segment anything at any resolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=predict.EXAMPLES)(predict.predict)
app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=scenes.EXAMPLES)(scenes.scenes)
app.command(epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command()(models.models)
app.command()(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"anyres {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Segment anything at any resolution."""


def main() -> None:
    """Run the command and exit."""
    if not sys.warnoptions:
        # Damaged metadata is Pillow's to warn of; people want to know what became of the picture.
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app()
    except AnyresError as error:
        typer.echo(f"anyres: {error}", err=True)
        sys.exit(error.exit_code)
