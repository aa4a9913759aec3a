"""What an arm makes of held-out recordings, by the metrics of `dacse evaluate`. Knows no model."""

import os
import platform
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from evaluation_dacse.metrics import load_metric
from evaluation_dacse.rendering import render_test_set
from evaluation_dacse.testsets import Clip
from processing_dacse import DacSeProcessor
from training_dacse.experiments.arms import Generate, enhance_in_windows
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments
from training_dacse.tokens.cache import TokenCache
from training_dacse.tokens.encode import find_processor, first_codebooks

SECONDS = 3.0  # of a recording that is listened to
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
        data: tokens that are trained on: the clips' length and codec are theirs.
        folder: where recordings are rendered once.
    """

    def __init__(self, experiment: ExperimentArguments, data: DataArguments, folder: str | Path):
        made = TokenCache(data.tokens, "valid").shards.description
        self.processor, self.window_frames = find_processor(made["codec_path"]), made["window_frames"]
        if data.num_codebooks:
            codec = first_codebooks(self.processor.audio_tokenizer, data.num_codebooks)
            self.processor = DacSeProcessor.from_codec(codec)
        recipe = Path(folder) / "recordings.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        described = yaml.safe_load(Path(experiment.recipe).read_text()) | {"clip_seconds": [SECONDS, SECONDS]}
        recipe.write_text(yaml.safe_dump(described, sort_keys=False))
        self.clips = render_test_set(
            experiment.corpus,
            recipe,
            Path(folder) / "recordings",
            clips_per_task=experiment.listened_clips,
            sampling_rate=self.processor.sampling_rate,
            split="valid",
            where=experiment.where,
        ).clips
        self.metrics = {name: load_metric(name) for name in METRICS}

    def score(
        self,
        generate: Generate,
        processor: DacSeProcessor | None = None,
        decoder: DacSeProcessor | None = None,
        clean: bool = False,
    ) -> dict[str, float]:
        """Means over the recordings, and of each task `METRIC/TASK`.

        Args:
            generate: clean codes of noisy ones.
            processor, decoder: as in `enhance_in_windows`; that of the tokens when left out.
            clean: give it the clean recordings, to hear what the codec alone costs.
        """
        heard = [processor or self.processor, decoder]
        rows = [self.score_clip(clip, generate, *heard, clean) for clip in self.clips]
        figures = {}
        for name in rows[0]:
            figures[name] = float(np.nanmean([row[name] for row in rows]))
            for task in dict.fromkeys(clip.task for clip in self.clips):
                own = [row[name] for row, clip in zip(rows, self.clips, strict=True) if clip.task == task]
                figures[f"{name}/{task}"] = float(np.nanmean(own))
        return figures

    def score_clip(self, clip: Clip, generate: Generate, processor, decoder, clean: bool) -> dict[str, float]:
        """Scores of one recording."""
        (noisy, rate), (target, _) = (soundfile.read(path, dtype="float32") for path in (clip.noisy, clip.clean))
        given = target if clean else noisy
        enhanced = enhance_in_windows(generate, processor, given, self.window_frames, decoder)
        sounds = [{"array": sound, "sampling_rate": rate} for sound in (enhanced, target)]
        scores = {}
        for name, shown in METRICS.items():
            values = self.metrics[name].measure(*sounds)[0]
            scores |= {label: values[column] for column, label in shown.items()}
        return scores


def remarks(args: DacSeTrainingArguments, data: DataArguments, model: str | None = None) -> list[str]:
    """Lines under a table: how it was made.

    Args:
        args, data: of all arms.
        model: what the arms began with, where `data` does not say.
    """
    made = TokenCache(data.tokens, "train", num_codebooks=data.num_codebooks)
    codec = made.shards.description
    facts = {
        "machine": f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}",
        "codec": f"{Path(codec['codec_path']).name} ({codec['codec']}), {codec['num_codebooks']} codebooks of "
        f"{codec['codebook_size']}, {codec['sampling_rate'] / codec['hop_length']:.1f} frames/s",
        "clips": f"{len(made)} of {int(made.num_frames[0])} frames, {made.num_codebooks} codebooks",
        "model": model or data.model_overrides or Path(data.model).name,
        "steps": args.max_steps,
        "clips a step": args.per_device_train_batch_size,
        "learning rate": args.learning_rate,
        "warm-up": f"{args.warmup_steps:g} of the steps",
    }
    command = shlex.join(["python", *sys.argv])
    return ["", f"`{command}`", "", *(f"- {name}: {value}" for name, value in facts.items())]
