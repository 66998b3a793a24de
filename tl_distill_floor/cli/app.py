"""The application `tl-floor` and its commands.

Torch and the model libraries are imported inside the commands, so that `tl-floor --help` is fast.
"""

from typing import Annotated

import typer

from tl_distill_floor import __version__
from tl_distill_floor.cli.calibrate import calibrate
from tl_distill_floor.cli.compare import compare
from tl_distill_floor.cli.diagnose import diagnose
from tl_distill_floor.cli.distill import distill
from tl_distill_floor.cli.lost import lost
from tl_distill_floor.cli.measure import measure
from tl_distill_floor.cli.memory import tune_allocator, wait_passively
from tl_distill_floor.cli.plan import plan
from tl_distill_floor.cli.probe import probe
from tl_distill_floor.cli.report import report
from tl_distill_floor.cli.saes import saes
from tl_distill_floor.cli.streams import use_tolerant_streams
from tl_distill_floor.cli.toy import toy
from tl_distill_floor.cli.train_sae import train_sae
from tl_distill_floor.cli.unused_options import CommandWithContext

PREDICT, TRAIN, CHECK = "Predict", "Train and plan", "Check and report"
"""Panels of the list of commands."""

app = typer.Typer(name="tl-floor", no_args_is_help=True, pretty_exceptions_enable=False)
for command, panel in (
    (measure, PREDICT), (lost, PREDICT), (compare, PREDICT), (saes, PREDICT), (train_sae, PREDICT),
    (distill, TRAIN), (calibrate, TRAIN), (plan, TRAIN), (diagnose, TRAIN),
    (probe, CHECK), (report, CHECK), (toy, CHECK),
):  # fmt: skip
    app.command(cls=CommandWithContext, rich_help_panel=panel)(command)


def _print_version(asked: bool) -> bool:
    if asked:
        print(f"tl-distill-floor {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Predict the loss floor of a distilled language model from its teacher's sparse autoencoder.

    Start with tl-floor measure, which predicts how much loss students of each width cannot avoid.
    """


def main() -> None:
    """Run the command line; this is the entry point `tl-floor`."""
    use_tolerant_streams()
    tune_allocator()
    wait_passively()
    app()
