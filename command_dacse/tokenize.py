"""`dacse tokenize`: a corpus made into tokens to train on, in shards that any number of machines can make."""

import json
import logging
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from command_dacse import default_model
from command_dacse.options import check_shared, parse_shard
from command_dacse.terminal import one_line, progress_bar

if TYPE_CHECKING:
    from training_dacse.tokens.writer import ShardWriter

HELP = {
    "corpus": "Clean speech (folder, manifest, data set on the Hub); without --recipe a folder of noisy/clean pairs.",
    "output": "Folder of the tokens, which get into train/ and valid/. The same command goes on where it was.",
    "recipe": "YAML of the degradations.",
    "codec": "Folder or Hub id of the codec, or of a model with one.  [default: the embedded model]",
    "clips": "Degraded clips to train on (of pairs and of a stream: all there are).",
    "valid_clips": "Held-out clips of each task.",
    "task": "One of the recipe's tasks; may be given several times.  [default: all]",
    "where": "Rows of a manifest: 'bandwidth_hz >= 14500 and snr_db >= 30'.",
    "noise": "Folder, manifest or data set of noise.",
    "rooms": "The same of room impulse responses.  [default: simulated rooms]",
    "music": "The same of music.",
    "valid_data": "Held-out speech, or pairs.  [default: what CORPUS holds out]",
    "max_seconds": "The longest clip.  [default: the recipe's; 4 s of pairs]",
    "whole": "Make all clips that long, for a model of one window.",
    "stream": "Read CORPUS, a data set, without storing it; a file gives a shard.",
    "seed": "Of clips, tasks and degradations.",
    "skip_broken": "Count recordings that are no audio, or silent, and go on without them.",
    "shard": "Make only this machine's part, such as 1/4.",
    "ray": "Share it out on Ray (local, auto, or the address of a cluster), whose nodes all see OUTPUT.",
    "processes": "That degrade and encode here.",
    "device": "Where they encode, such as cuda.",
    "shard_size": "Clips of a shard.",
    "follow": "Make new clips for as long as a training run reads them, and remove those it has read.",
    "ahead": "With --follow: shards to make that the run does not read yet.",
    "as_json": "Print JSON.",
}


def option(name: str, *flags: str):
    """An option with its help."""
    return typer.Option(*flags, help=HELP[name])


def tokenize(
    corpus: Annotated[str, typer.Argument(help=HELP["corpus"])],
    output: Annotated[Path, option("output", "--output", "-o")],
    recipe: Annotated[Path | None, option("recipe")] = None,
    codec: Annotated[str | None, option("codec")] = None,
    clips: Annotated[int, option("clips")] = 20_000,
    valid_clips: Annotated[int, option("valid_clips")] = 16,
    task: Annotated[list[str] | None, option("task")] = None,
    where: Annotated[str | None, option("where")] = None,
    noise: Annotated[str | None, option("noise")] = None,
    rooms: Annotated[str | None, option("rooms")] = None,
    music: Annotated[str | None, option("music")] = None,
    valid_data: Annotated[str | None, option("valid_data")] = None,
    max_seconds: Annotated[float | None, option("max_seconds")] = None,
    whole: Annotated[bool, option("whole")] = False,
    stream: Annotated[bool, option("stream")] = False,
    seed: Annotated[int, option("seed")] = 0,
    skip_broken: Annotated[bool, option("skip_broken")] = False,
    shard: Annotated[str, option("shard")] = "1/1",
    ray: Annotated[str | None, option("ray")] = None,
    processes: Annotated[int, option("processes")] = 1,
    device: Annotated[str, option("device")] = "cpu",
    shard_size: Annotated[int, option("shard_size")] = 256,
    follow: Annotated[bool, option("follow")] = False,
    ahead: Annotated[int, option("ahead")] = 2,
    as_json: Annotated[bool, option("as_json", "--json")] = False,
) -> None:
    """Make a corpus into tokens: noisy and clean, to train on and held out, in numbered shards.

    What is held out is never trained on: speakers, noise and rooms. A manifest's `split` column says what that is, or
    the splits of a data set; else one in ten speakers (or folders, or recordings) is, by the hashes of their names.

    Examples:

    - `dacse tokenize CORPUS --recipe examples/configs/recipe_paper.yaml --codec descript/dac_44khz -o tokens`

    - `dacse tokenize PAIRS -o tokens`

    - `dacse tokenize CORPUS --recipe R.yaml -o tokens --shard 2/8 --processes 16` on the second of eight machines

    - `dacse tokenize CORPUS --recipe R.yaml -o tokens --ray auto --device cuda` on a cluster

    - `hf upload my-org/tokens tokens --repo-type dataset` to train on them anywhere
    """
    from training_dacse.tokens.tokenize import TokenizeArguments
    from training_dacse.tokens.tokenize import tokenize as make_tokens

    logging.basicConfig(format="%(message)s")
    logging.getLogger("training_dacse").setLevel(logging.INFO)
    try:
        check_shared(ray, device, has_standard=False)
        if ray is not None and (processes > 1 or follow):
            raise ValueError("--processes and --follow are this machine's; leave them out, or --ray")
        arguments = TokenizeArguments(
            corpus=corpus,
            output=str(output),
            codec=codec or default_model(),
            recipe=recipe and str(recipe),
            clips=clips,
            valid_clips=valid_clips,
            tasks=task or None,
            where=where,
            noise=noise,
            rooms=rooms,
            music=music,
            valid_data=valid_data,
            max_seconds=max_seconds,
            whole=whole,
            stream=stream,
            seed=seed,
            skip_broken=skip_broken,
            shard=parse_shard(shard),
            processes=processes,
            device=device,
            shard_size=shard_size,
            follow=follow,
            ahead=ahead,
        )
        counts = make_tokens(arguments, ray and partial(_write_on_ray, ray, device))
    except (OSError, ValueError) as error:
        typer.echo(f"error: {one_line(error)}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(counts, indent=2))
    else:
        for part, count in counts.items():
            typer.echo(
                f"{output / part}: {count['clips']} clips in {count['shards']} shards, {count['tokens']:,} tokens"
            )


@dataclass
class ShardWork:
    """Makes chunks of shards in one process of many; those that are there, of a worker that died, stay as they are."""

    writers: "dict[str, ShardWriter]"
    folder: str = field(default_factory=os.getcwd)  # of the command, where relative names begin

    def __call__(self, shards: list[tuple[str, int]]) -> None:
        """Makes shards, of a part and a number each."""
        os.chdir(self.folder)
        for part, number in shards:
            if not self.writers[part].is_there(number):
                self.writers[part].write(number)


def _write_on_ray(
    address: str, device: str, writers: "dict[str, ShardWriter]", shards: list[tuple[str, int]], processes: int
) -> None:
    """Has a cluster make shards.

    Raises:
        OSError: There is no such cluster, or no worker survives one of the shards.
    """
    from command_dacse.cluster import WorkerDied, run_on_ray

    if not shards:
        return
    with progress_bar() as progress:
        bar = progress.add_task("shards", total=len(shards))
        for chunk, answer in run_on_ray(address, ShardWork(writers), shards, use_gpus=device != "cpu"):
            progress.advance(bar, len(chunk))
            if isinstance(answer, WorkerDied):
                part, number = chunk[0]
                raise OSError(f"shard {number} of {part} cannot be made: {answer}")
