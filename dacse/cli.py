"""The `dacse` command. Each command lives in a file of its own and imports torch only once it has work to do."""

import typer

from dacse.app import app as demo
from dacse.enhance import enhance
from dacse.info import info
from dacse.tokenize import tokenize
from evaluation_dacse.command import evaluate
from hub_upload.command import convert, push, verify

app = typer.Typer(
    help="Speech enhancement with discrete audio tokens: noisy speech in, clean 44.1 kHz speech out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command()(enhance)
app.command()(evaluate)
app.command()(info)
app.command("app")(demo)
app.command()(tokenize)
app.command()(push)
app.command()(convert)
app.command()(verify)


def main() -> None:
    """Entry point of the console script."""
    app()
