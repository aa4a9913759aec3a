"""What an arm makes of held-out recordings, by the metrics of `dacse evaluate`. Knows recordings and metrics, no model."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from transformers import set_seed

from evaluation_dacse.metrics import load_metric
from evaluation_dacse.rendering import render_test_set
from evaluation_dacse.testsets import Clip
from processing_dacse import DacSeProcessor
from training_dacse.experiments.arms import Generate, enhance_in_windows
from training_dacse.tokens.cache import TokenCache
from training_dacse.tokens.encode import find_processor

METRICS = {"stoi": {"stoi": "STOI"}, "dnsmos": {"dnsmos_ovrl": "OVRL", "dnsmos_sig": "SIG", "dnsmos_bak": "BAK"}}
BEST = {"loss": "low", "STOI": "high", "OVRL": "high", "SIG": "high", "BAK": "high"}


@dataclass
class ExperimentArguments:
    """Where an experiment reads and what it repeats."""

    corpus: str = field(metadata={"help": "folder with a MANIFEST.tsv: its held-out speech is listened to"})
    recipe: str = field(metadata={"help": "YAML of the degradations, that of the tokens"})
    where: str | None = field(default=None, metadata={"help": "rows of the manifest, those of the tokens"})
    seeds: int = field(default=3, metadata={"help": "runs of every arm, of which the intervals are"})
    listened_clips: int = field(default=4, metadata={"help": "held-out recordings of each task that are enhanced"})
    only: list[str] | None = field(default=None, metadata={"help": "some arms alone; else all that are not done"})


class Listener:
    """Scores what is generated for held-out recordings of some seconds each.

    Args:
        experiment: where they come from.
        tokens: that are trained on: the clips' length and codec are theirs.
        folder: where recordings are rendered once.
    """

    def __init__(self, experiment: ExperimentArguments, tokens: str, folder: str | Path):
        made = TokenCache(tokens, "valid").shards.description
        self.processor, self.window_frames = find_processor(made["codec_path"]), made["window_frames"]
        self.clips = render_test_set(
            experiment.corpus,
            experiment.recipe,
            Path(folder) / "recordings",
            clips_per_task=experiment.listened_clips,
            sampling_rate=self.processor.sampling_rate,
            split="valid",
            where=experiment.where,
        ).clips
        self.metrics = {name: load_metric(name) for name in METRICS}

    def score(self, generate: Generate, processor: DacSeProcessor | None = None) -> dict[str, float]:
        """Means over the recordings, and of each task `METRIC/TASK`."""
        set_seed(0)
        rows = [self.score_clip(clip, generate, processor or self.processor) for clip in self.clips]
        figures = {}
        for name in rows[0]:
            figures[name] = float(np.nanmean([row[name] for row in rows]))
            for task in dict.fromkeys(clip.task for clip in self.clips):
                own = [row[name] for row, clip in zip(rows, self.clips, strict=True) if clip.task == task]
                figures[f"{name}/{task}"] = float(np.nanmean(own))
        return figures

    def score_clip(self, clip: Clip, generate: Generate, processor: DacSeProcessor) -> dict[str, float]:
        """Scores of one recording."""
        (noisy, rate), (clean, _) = (soundfile.read(path, dtype="float32") for path in (clip.noisy, clip.clean))
        enhanced = enhance_in_windows(generate, processor, noisy, self.window_frames)
        sounds = [{"array": sound, "sampling_rate": rate} for sound in (enhanced, clean)]
        scores = {}
        for name, shown in METRICS.items():
            values = self.metrics[name].measure(*sounds)[0]
            scores |= {label: values[column] for column, label in shown.items()}
        return scores


def remarks(command: str, args, data, steps_note: str = "") -> list[str]:
    """Lines under a table: how it was made."""
    made = TokenCache(data.tokens, "train")
    facts = {
        "clips": len(made),
        "frames": int(made.num_frames[0]),
        "codebooks": made.num_codebooks,
        "model": data.model_overrides or data.model,
        "steps": args.max_steps,
        "batch": args.per_device_train_batch_size,
        "learning_rate": args.learning_rate,
        "warm-up": args.warmup_steps,
    }
    return ["", f"`{command}`{steps_note}", "", "```json", json.dumps(facts, indent=1), "```"]
