"""What stage 3 and the best of several gain over the model as it is, on held-out speech degraded anew:

python examples/experiments/rewards.py --config examples/experiments/rewards.yaml --corpus CORPUS --adapter STAGE3

The adapter of `examples/train_stage3.py` may be left out. Recordings that are there are not enhanced again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from transformers import pipeline

import dacse
from evaluation_dacse.benchmark import run_benchmark
from evaluation_dacse.rendering import render_test_set
from evaluation_dacse.report import about, difference_table, footer, score_table
from evaluation_dacse.testsets import TestSet
from training_dacse.lm.arguments import parse_arguments

START = "as it is"


@dataclass
class RewardsArguments:
    """What is compared, on what."""

    corpus: str = field(metadata={"help": "clean speech, which is degraded"})
    recipe: str = field(metadata={"help": "YAML of the degradations"})
    model: str = field(default_factory=dacse.default_model, metadata={"help": "folder or Hub id"})
    adapter: str | None = field(default=None, metadata={"help": "what stage 3 left"})
    split: str = field(default="test", metadata={"help": "of the corpus"})
    where: str | None = field(default=None, metadata={"help": "rows of the corpus' manifest"})
    clips_per_task: int = field(default=20, metadata={"help": "recordings of each task"})
    candidates: int = field(default=8, metadata={"help": "answers of which the best is kept"})
    choices: list[str] = field(default_factory=lambda: ["confidence", "dnsmos"], metadata={"help": "by which"})
    metrics: list[str] = field(
        default_factory=lambda: ["dnsmos", "plcmos", "stoi", "pesq", "mel_distance"],
        metadata={"help": "rewarded or not"},
    )
    seed: int = field(default=0, metadata={"help": "of what is drawn"})
    work: str = field(default="runs/rewards", metadata={"help": "folder of recordings and scores"})
    output: str = field(default="docs/experiments/rewards", metadata={"help": "folder of the table"})


def arms_of(asked: RewardsArguments) -> dict[str, dict]:
    """Parameters of a call, by the name of the arm."""
    draws = {"seed": asked.seed, "do_sample": True}
    several = {
        f"best of {asked.candidates} by {choice}": draws | {"candidates": asked.candidates, "choose": choice}
        for choice in asked.choices
    }
    arms = {START: {}, "one draw": draws} | several
    if asked.adapter:
        arms |= {"after stage 3": {"adapter": asked.adapter}}
        arms |= {f"after, {name}": call | {"adapter": asked.adapter} for name, call in several.items()}
    return arms


def enhance(pipe, test_set: TestSet, call: dict, folder: Path) -> None:
    """Writes what a call makes of every clip."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in test_set.clips if not (folder / f"{clip.name}.wav").exists()]
    for clip, out in zip(missing, pipe((str(clip.noisy) for clip in missing), **call), strict=True):
        unfinished = folder / f"{clip.name}.part"
        soundfile.write(unfinished, np.atleast_2d(out["audio"]).T, out["sampling_rate"], "FLOAT", format="WAV")
        unfinished.rename(folder / f"{clip.name}.wav")


def main():
    (asked,) = parse_arguments(RewardsArguments)
    work, arms = Path(asked.work), arms_of(asked)
    settings = {"clips_per_task": asked.clips_per_task, "split": asked.split, "where": asked.where}
    test_set = render_test_set(asked.corpus, asked.recipe, work / "test_set", **settings)
    pipe = pipeline("audio-enhancement", model=asked.model, device="cpu")
    folders = {name: work / name.replace(" ", "_").replace(",", "") for name in arms}
    for name, call in arms.items():
        enhance(pipe, test_set, call, folders[name])
    systems = {name: f"folder:{folder}" for name, folder in folders.items()}
    summary = run_benchmark(test_set, ["noisy", *systems.values()], work / "run", asked.metrics, systems[START])
    named = json.dumps(summary)
    for name, system in sorted(systems.items(), key=lambda pair: -len(pair[1])):
        named = named.replace(json.dumps(system), json.dumps(name))
    summary = json.loads(named)
    text = [
        "# Rewards, and the best of several",
        f"Model `{Path(asked.model).name}`, on {about(summary)} Means and 95 % intervals over clips and speakers.",
        score_table(summary, "overall"),
        f"Paired differences from the model {START}; bold where they are sure (p < 0.05 after Holm's correction).",
        difference_table(summary, START),
        footer(summary),
    ]
    output = Path(asked.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
