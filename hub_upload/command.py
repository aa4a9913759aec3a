"""The commands `dacse push`, `dacse convert` and `dacse verify`. Imports torch only once there is work to do."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.status import Status

Dtype = StrEnum("Dtype", ["float32", "bfloat16", "float16"])


def push(
    source: Annotated[
        str, typer.Argument(metavar="[SOURCE]", help="Directory of what is published; left out with --space.")
    ],
    repo_id: Annotated[str | None, typer.Argument(metavar="REPO_ID", help="USER/NAME or ORGANISATION/NAME.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="SOURCE is a PEFT adapter.")] = False,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the model an adapter was trained on.")] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help="SOURCE is a token cache or noisy/ and clean/.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Publish the demo app.")] = False,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Hub id the demo app offers; may be repeated.  [default: the embedded one]"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Hide a new repository from others.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what dacse did not publish.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stage, verify and list; upload nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Publishes a model, an adapter, a data set or the demo app on the Hub, in one commit.

    A complete repository is staged and verified in a process without this package and without network; only then it is
    uploaded. A failure leaves the Hub as it was. Published again, files that are no more go in the same commit, and
    what somebody added by hand stays and is named. `card.yaml` in SOURCE states what the card cannot know: `license`,
    `base_model`, `language`, `training_data` (each with `name`, `licence`, `id`), `compute`, `limits`, `samples` (each
    with `file`, `title`), `task`.

    - `dacse push runs/stage2 my-org/dac-se1 --private`

    - `dacse push runs/dereverb my-org/dac-se1-dereverb --adapter --base-model my-org/dac-se1`

    - `dacse push cache my-org/speech-tokens --dataset --dry-run`

    - `dacse push --space my-org/enhance --model my-org/dac-se1`
    """
    if adapter + dataset + space > 1:
        raise typer.BadParameter("--adapter, --dataset and --space exclude each other")
    if models and not space:
        raise typer.BadParameter("--model is for --space: the models that the demo app offers")
    if space and repo_id is not None or not space and repo_id is None:
        raise typer.BadParameter("give SOURCE and REPO_ID, or with --space REPO_ID alone")
    with one_line_errors(), Console(stderr=True).status("starting") as status:
        from .push import push as publish
        from .remote import ADAPTER, DATASET, MODEL, SPACE
        from .space import space_variables

        variables = None
        if space:
            repo_id, kind, prepare = source, SPACE, prepare_space(status, source, models or [])
            variables = space_variables(models or [])
        elif dataset:
            kind, prepare = DATASET, prepare_dataset(status, source, repo_id)
        elif adapter:
            kind, prepare = ADAPTER, prepare_adapter(status, source, repo_id, base_model)
        else:
            kind, prepare = MODEL, prepare_model(status, source, repo_id)
        done = publish(repo_id, kind, prepare, private=private, force=force, dry_run=dry_run, variables=variables)
    if as_json:
        files = [{"path": path, "bytes": size} for path, size in done.files]
        report = {"repo_id": done.repo_id, "repo_type": done.kind.repo_type, "url": done.url, "files": files}
        typer.echo(json.dumps(report | {"removed": done.removed, "kept": done.kept}))
        return
    for path, size in done.files:
        typer.echo(f"{decimal(size):>10}  {path}")
    for path in done.removed:
        typer.echo(f"   removed  {path}")
    for path in done.kept:
        typer.echo(f"      kept  {path} (not of dacse)")
    what = f"{len(done.files)} files, {decimal(done.num_bytes)}"
    typer.echo(f"{what}: published as {done.url}" if done.url else f"{what}: verified, nothing uploaded (dry run)")


def convert(
    source: Annotated[str, typer.Argument(help="Directory or Hub id of a dacse or plain Llama checkpoint.")],
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to be made.")],
    codec: Annotated[str | None, typer.Option(help="Directory or Hub id of the codec of a plain Llama.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the language model.  [default: as it is]")] = None,
    adapter: Annotated[str | None, typer.Option(help="Directory or Hub id of a LoRA adapter to be merged.")] = None,
    plain_llama: Annotated[
        bool, typer.Option("--plain-llama", help="Write a plain Llama, which vLLM and other engines load.")
    ] = False,
) -> None:
    """Makes a self-contained directory of a checkpoint: model, codec, code and card, as `dacse push` publishes them.

    With --plain-llama it holds the language model alone, a tokenizer of numbers, and `codebook_grid.py`, which keeps
    vLLM's sampling on the grid of codebooks.

    - `dacse convert disco-eth/DAC-SE1 dac-se1 --codec descript/dac_44khz`

    - `dacse convert dac-se1 dac-se1-bf16 --dtype bfloat16`

    - `dacse convert dac-se1 dac-se1-dereverb --adapter my-org/dac-se1-dereverb`

    - `dacse convert dac-se1 dac-se1-llama --plain-llama --dtype bfloat16`
    """
    with one_line_errors(), Console(stderr=True).status(f"converting {source}"):
        import torch

        from .convert import convert as write

        write(source, destination, codec, getattr(torch, dtype) if dtype else None, adapter, plain_llama)
    use = f"PYTHONPATH={destination} vllm serve {destination} --logits-processors codebook_grid:GridLogitsProcessor"
    typer.echo(f"{destination} is ready: {use if plain_llama else f'dacse enhance noisy.wav --model {destination}'}")


def verify(
    repository: Annotated[str, typer.Argument(help="Directory or Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hub id.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code in it that is not this package's.")
    ] = False,
) -> None:
    """Proves that a repository loads without this package and without network, with the same output bit for bit.

    - `dacse verify dac-se1`

    - `dacse verify my-org/dac-se1 --revision main`
    """
    with one_line_errors(), Console(stderr=True).status(f"verifying {repository}"):
        from huggingface_hub import snapshot_download

        from .places import check_place
        from .push import refuse_pickles
        from .stage import open_checkpoint
        from .verify import verify as run

        check_place(repository)
        is_local = Path(repository).is_dir()
        folder = Path(repository if is_local else snapshot_download(repository, revision=revision))
        refuse_pickles(folder)
        run(folder, open_checkpoint(str(folder)), trust_remote_code)
    typer.echo(f"{repository} works without this package, with the same output")


def prepare_model(status: Status, source: str, repo_id: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        from huggingface_hub import constants

        from .stage import open_checkpoint, stage_model
        from .verify import verify as run

        status.update(f"staging {source}")
        enhance = open_checkpoint(source)
        stage_model(enhance, source, folder, repo_id, f"{constants.ENDPOINT}/{repo_id}/resolve/main/")
        status.update("verifying in a process without this package")
        run(folder, enhance)
        status.stop()  # the upload shows bars of its own

    return prepare


def prepare_adapter(status: Status, source: str, repo_id: str, base_model: str | None) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        from .adapter import stage_adapter

        status.update(f"checking {source} against its base model")
        stage_adapter(Path(source), folder, repo_id, base_model)
        status.stop()

    return prepare


def prepare_dataset(status: Status, source: str, repo_id: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        from .dataset import stage_dataset

        status.update(f"staging {source}")
        stage_dataset(Path(source), folder, repo_id)
        status.stop()

    return prepare


def prepare_space(status: Status, repo_id: str, models: list[str]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        from .space import MODEL_FOLDER, check_space_models, embedded_model, stage_space
        from .stage import open_checkpoint, stage_model
        from .verify import verify as run

        check_space_models(models)
        stage_space(folder, models)
        if not models:
            status.update("staging and verifying the embedded model")
            enhance = open_checkpoint(str(embedded_model()))
            (folder / MODEL_FOLDER).mkdir()
            stage_model(enhance, str(embedded_model()), folder / MODEL_FOLDER, repo_id)
            run(folder / MODEL_FOLDER, enhance)
        status.stop()

    return prepare


@contextmanager
def one_line_errors() -> Generator[None]:
    """Shows an error as one line and ends with exit status 1; hushes the bars and tables of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error}; pip install 'dacse[train]' brings it", err=True)
        raise typer.Exit(1) from error
    except (OSError, ValueError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
