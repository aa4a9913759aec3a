"""How systems do beyond the training data: other languages, over 30 s, unseen combinations, voices or music behind.

    python examples/evaluate_robustness.py CORPUS -o run_robustness --systems noisy,clean,dacse,rnnoise

CORPUS is a folder with a MANIFEST.tsv whose columns kind, split and language say what its files are.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer
import yaml

from evaluation_dacse.benchmark import run_benchmark
from evaluation_dacse.report import write_report
from evaluation_dacse.testsets import Clip, TestSet, read_clip, render_test_set

NOISE = [{"kind": "natural_noise", "snr_db": [0, 10]}]
SLICES = {  # name -> (which speech, what is done to it)
    "english": ("language == 'en'", NOISE),
    "other_languages": ("language != 'en'", NOISE),
    "second_speaker": (None, [{"kind": "babble", "speakers": [1, 1], "snr_db": [0, 10]}]),
    "music": (None, [{"kind": "music", "snr_db": [0, 10]}]),
    "unseen_combination": (None, [{"kind": "clipping"}, *NOISE, {"kind": "small_room"}, {"kind": "lossy_codec"}]),
}
LONG_SECONDS = 35


def main(
    corpus: str,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("run_robustness"),
    systems: str = "noisy,clean,dacse",
    clips: Annotated[int, typer.Option(help="Per slice.")] = 10,
    music: Annotated[str | None, typer.Option(help="Folder of music; without it there is no such slice.")] = None,
    metrics: str = "dnsmos,plcmos,stoi,mel_distance",
    processes: int = 1,
):
    output.mkdir(parents=True, exist_ok=True)
    everything = []
    for name, (where, steps) in SLICES.items():
        if name == "music" and not music:
            continue
        recipe = output / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({"clip_seconds": [1.0, 8.0], "tasks": {name: {"steps": steps}}}))
        everything += render_test_set(corpus, recipe, output / name, clips, where=where, music=music).clips
    everything.append(join([clip for clip in everything if clip.task == "english"], output / "over_30_s"))
    test_set = TestSet("robustness", everything)
    run_benchmark(test_set, systems.split(","), output, metrics.split(","), processes=processes)
    typer.echo(write_report(output).read_text())


def join(clips: list[Clip], folder: Path) -> Clip:
    """One clip of more than 30 s: others one after the other, from the start again where they are too few."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [read_clip(clip) for clip in clips]
    rate = pairs[0][2]
    for side, name in enumerate(("noisy", "clean")):
        joined = np.resize(np.concatenate([pair[side] for pair in pairs]), LONG_SECONDS * rate)
        soundfile.write(folder / f"{name}.flac", joined, rate)
    return Clip("over_30_s", "over_30_s", folder / "noisy.flac", folder / "clean.flac")


if __name__ == "__main__":
    typer.run(main)
