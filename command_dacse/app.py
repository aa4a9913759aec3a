"""`dacse app`: the demo of `spaces_app` on this machine, run as a Space runs it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from hub_upload.places import check_place


def app(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Directory or Hub id; repeat to offer several.  [default: the embedded one]"
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="Directory or Hub id of an adapter to offer; may be repeated."),
    ] = None,
    max_minutes: Annotated[float, typer.Option(help="Longest recording taken.")] = 10,
    port: Annotated[int, typer.Option(help="Port on this machine, or the next that is free.")] = 7860,
) -> None:
    """Open the demo in a browser: upload or record, enhance, compare, download.

    Examples:

    - `dacse app`

    - `dacse app --model org/dac-se1 --adapter org/dac-se1-dereverb --max-minutes 60`
    """
    if not find_spec("gradio"):
        typer.echo("error: the demo needs gradio; pip install 'dacse[app]'", err=True)
        raise typer.Exit(1)
    try:
        for place in (*(models or ()), *(adapters or ())):
            check_place(place)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    settings = {
        "DACSE_MODELS": ",".join(models or ()),
        "DACSE_ADAPTERS": ",".join(adapters or ()),
        "DACSE_MAX_MINUTES": str(max_minutes),
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the same packages as here
    }
    script = Path(find_spec("spaces_app").origin).parent / "app.py"
    raise typer.Exit(subprocess.run([sys.executable, str(script)], env=os.environ | settings).returncode)
