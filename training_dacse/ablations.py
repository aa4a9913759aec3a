"""Variants of a run trained side by side on the same clips, and what came out of them as JSON, table and plot."""

import json
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from accelerate import PartialState
from transformers import DacModel, set_seed

from processing_dacse.codec_dacse import decode_in_pieces

from .arguments import DacSeTrainingArguments, DataArguments
from .codec.losses import MultiScaleMelLoss
from .data import TokenCache
from .listening import enhance_codes
from .runs import make_data, make_model, make_trainer
from .trainer import DacSeTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def train_variant(
    name: str, data: DataArguments, args: DacSeTrainingArguments, codec: DacModel, **settings
) -> DacSeTrainer:
    """Trains one variant on the clips all variants share and leaves it under `OUTPUT/NAME`.

    Args:
        name: of the variant.
        data, args: of every variant.
        codec: that made the clips.
        settings: fields of `data` or `args` that are this variant's own.
    """
    own = {key: settings.pop(key) for key in list(settings) if key in DataArguments.__dataclass_fields__}
    data, here = replace(data, **own), copy(args)
    here.output_dir = str(Path(args.output_dir) / name)
    for key, value in settings.items():
        setattr(here, key, value)
    set_seed(here.seed)
    model = make_model(data, codec)
    train, valid = make_data(data, args.output_dir, codec, model.config)
    trainer = make_trainer(model, here, train, valid)
    trainer.train()
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()  # before anybody reads what the first process writes
    return trainer


@torch.inference_mode()
def mel_distance(model, clips: TokenCache, codec: DacModel, num_clips: int, num_codebooks: int) -> float:
    """Mean multi-scale mel distance between enhanced and clean clips.

    Args:
        model: enhances greedily.
        clips: held-out rows with all codebooks of the codec.
        codec: decodes.
        num_clips: how many of the first rows.
        num_codebooks: how many of the first codebooks of what was generated are decoded.
    """
    loss, distances = MultiScaleMelLoss(codec.config.sampling_rate), []
    for number in range(min(num_clips, len(clips))):
        clip = clips[number]
        generated = enhance_codes(model, clip["noisy"][: model.config.num_codebooks])[:num_codebooks]
        enhanced, clean = (decode_in_pieces(codec, codes[None]) for codes in (generated, clip["clean"]))
        distances.append(loss(enhanced, clean).item())
    return float(np.mean(distances))


def fit_power_law(parameters: Iterable[float], losses: Iterable[float]) -> tuple[float, float]:
    """`scale` and `exponent` of `loss = scale * parameters ** -exponent`, by least squares of the logarithms.

    The form without an irreducible loss (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1): three sizes cannot tell more.

    >>> scale, exponent = fit_power_law([1e3, 1e4, 1e5], [8.0, 4.0, 2.0])
    >>> round(scale), round(exponent, 3)
    (64, 0.301)
    """
    slope, intercept = np.polyfit(np.log(list(parameters)), np.log(list(losses)), 1)
    return float(np.exp(intercept)), float(-slope)


def write_results(folder: str | Path, title: str, results: dict[str, dict[str, float]], **extra) -> None:
    """The first process of a launch writes `results.json`, `results.md` (a row per variant) and `results.png` (bars).

    Args:
        folder: created when missing.
        title: of table and plot.
        results: figures by variant.
        extra: further content of the JSON.
    """
    if not PartialState().is_main_process:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"title": title, "results": results, **extra}, indent=2) + "\n")
    columns = list(next(iter(results.values())))
    lines = [f"# {title}", "", f"| variant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in results.items():
        lines.append(f"| {name} | {' | '.join(f'{figures[column]:.4g}' for column in columns)} |")
    (folder / "results.md").write_text("\n".join(lines) + "\n")
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2.2 * len(columns), 1.5 + 0.4 * len(results)), sharey=True, squeeze=False
    )
    for plot, column in zip(axes[0], columns, strict=True):
        plot.barh(list(results), [figures[column] for figures in results.values()])
        plot.set_title(column, fontsize=8)
    axes[0][0].invert_yaxis()  # shared: the first variant on top
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(folder / "results.png", dpi=120)
    plt.close(figure)
