"""The codec's stages, from recordings on, and the packaged model; each goes on where it stopped. Know a `Run`."""

import shutil
from pathlib import Path

import numpy as np
import torch
from corpus import decode_corpus
from settings import ROOT, Run
from transformers import DacConfig, DacModel, PreTrainedConfig

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import AudioEnhancementPipeline
from processing_dacse import DacSeProcessor
from training_dacse.clips.sources import Clips, find_clips
from training_dacse.codec.arguments import CodecTrainingArguments
from training_dacse.codec.segments import CodecSegments
from training_dacse.codec.trainer import CodecTrainer
from training_dacse.lm.forgetting import ForgettingMatrix
from training_dacse.lm.objective import PRIOR_FILE


def decode(run: Run) -> None:
    """Recordings -> `corpus`."""
    decode_corpus(run.data, run.corpus, run.settings["codec"]["codec"]["sampling_rate"])


def train_codec(run: Run) -> None:
    """Waveforms -> `audio_tokenizer`, rounded to the half precision it is shipped in; or one that is given."""
    if given := run.settings["codec"].get("given"):
        shutil.copytree(ROOT / given, run.codec, dirs_exist_ok=True)
        return
    config = DacConfig(**run.settings["codec"]["codec"])
    run_codec_trainer(run, config, run.settings["codec"]["training"], run.output / "codec")


def refine_decoder(run: Run) -> None:
    """`audio_tokenizer` -> the same with a decoder that was trained for longer, where the settings say so."""
    settings, output = run.settings["decoder"], run.output / "decoder"
    if not settings:
        return
    first = output / "first"
    if not first.exists():
        shutil.copytree(run.codec, first)
    config = DacConfig.from_pretrained(first)
    run_codec_trainer(run, config, settings | {"start_from": str(first), "decoder_only": True}, output)


def run_codec_trainer(run: Run, config: DacConfig, settings: dict, output: Path) -> None:
    """Trains a codec and leaves it as `audio_tokenizer`."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    arguments = CodecTrainingArguments(str(output), **settings)
    segments = CodecSegments(*codec_clips(run, "train"), config.sampling_rate, run.device)
    codec = CodecTrainer(config, arguments, run.device).train(segments)
    codec.half().float().save_pretrained(run.codec)


def codec_clips(run: Run, split: str) -> tuple[Clips, Clips]:
    """Clean speech and noise of a split."""
    rows, where = f"split == '{split}' and kind == ", run.settings["codec"]["where"]
    return find_clips(run.corpus, f"{rows}'speech' and ({where})"), find_clips(run.corpus, f"{rows}'noise'")


def best_model(run: Run) -> Path:
    """The weights with the lowest held-out loss over all tasks: stage 1's, or those of a sub-stage of stage 2."""
    if not run.settings["stage2"]:
        return run.output / "stage1"
    matrix = ForgettingMatrix.load(run.output / "stage2")
    best = int(np.mean(matrix.losses, axis=1).argmin())
    return run.output / "stage1" if best == 0 else run.output / "stage2" / matrix.stages[best]


def package(run: Run) -> None:
    """One repository of model, codec and code -> `package`: half precision on disk, full when loaded."""
    for stale in (run.package, run.output / "adapters", run.output / "evaluation"):
        shutil.rmtree(stale, ignore_errors=True)
    best = best_model(run)
    model = DacSeForEnhancement.from_pretrained(best, dtype=torch.bfloat16)
    policy = run.settings["stage1"].get("policy", {}) | {"window_frames": run.window_frames}
    processor = DacSeProcessor.from_codec(DacModel.from_pretrained(run.codec), **policy)
    AudioEnhancementPipeline(model=model, processor=processor, device="cpu").save_pretrained(run.package)
    processor.audio_tokenizer.half().save_pretrained(run.package / "audio_tokenizer")
    if (best / PRIOR_FILE).exists():
        shutil.copy(best / PRIOR_FILE, run.package)  # its adapters are trained with it, too
    load_in_full(DacSeConfig, run.package)
    load_in_full(DacConfig, run.package / "audio_tokenizer")


def load_in_full(config_class: type[PreTrainedConfig], folder: Path) -> None:
    """Says in a configuration that its weights are float32, whatever they are on disk."""
    config = config_class.from_pretrained(folder)
    config.dtype = "float32"
    config.save_pretrained(folder)
