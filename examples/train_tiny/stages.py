"""The stages of the recipe, from recordings to a packaged model; each goes on where it stopped. Know a `Run`."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from corpus import decode_corpus
from settings import ROOT, Run
from transformers import DacConfig, DacModel, PreTrainedConfig, set_seed

from hub_upload.adapter import copy_adapter
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse import AudioEnhancementPipeline
from processing_dacse import DacSeProcessor
from training_dacse.adapters import add_adapter, save_adapter
from training_dacse.arguments import (
    AdapterArguments,
    DacSeTrainingArguments,
    DataArguments,
    as_options,
    parse_arguments,
)
from training_dacse.codec.segments import CodecSegments
from training_dacse.codec.trainer import CodecTrainer, CodecTrainingArguments
from training_dacse.data import build_token_cache, find_codec
from training_dacse.forgetting import ForgettingMatrix
from training_dacse.runs import make_data, make_model, make_pairs, make_trainer, task_losses
from training_dacse.sources import Clips, find_clips

NAME = "dacse/tiny"  # what users load the model by
MAX_BYTES = 60e6  # of the package: it travels with every installation


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


def build_tokens(run: Run) -> None:
    """Degraded clips -> `tokens`, for all stages of the language model."""
    (data,) = parse_arguments(DataArguments, argv=data_options(run))
    codec = find_codec(data.codec)
    config = make_model(data, codec).config
    for split in ("valid", "train"):
        pairs = make_pairs(data, split, codec, config)
        count = data.train_clips if split == "train" else data.valid_clips * len(pairs.tasks)
        device = run.device if run.device != "cpu" else None
        build_token_cache(run.output / "tokens" / split, pairs, run.codec, count, data.cache_processes, device=device)


def data_options(run: Run) -> list[str]:
    """Stage 1's options that say what it is trained on."""
    known = DataArguments.__dataclass_fields__
    return as_options({name: value for name, value in run.options("stage1").items() if name in known})


def train_subsampled(run: Run) -> None:
    """Tokens -> `subsampled`, where the settings say so: a new model on some tokens of every frame."""
    if run.settings["subsampled"]:
        run_script("train_stage1.py", run.options("subsampled"))


def train_stage1(run: Run) -> None:
    """Tokens -> `stage1`: one model on the mixture of all tasks."""
    begun = {"model": str(run.output / "subsampled")} if run.settings["subsampled"] else {}
    run_script("train_stage1.py", run.options("stage1") | begun)


def train_stage2(run: Run) -> None:
    """`stage1` -> `stage2`, where the settings say so: task by task; what is forgotten is measured."""
    if run.settings["stage2"]:
        run_script("train_stage2.py", run.options("stage2") | {"model": str(run.output / "stage1")})


def run_script(name: str, options: dict) -> None:
    """Runs a training script of the examples."""
    subprocess.run([sys.executable, ROOT / "examples" / name, *as_options(options)], check=True, cwd=ROOT)


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
    model = DacSeForEnhancement.from_pretrained(best_model(run), dtype=torch.bfloat16)
    processor = DacSeProcessor.from_codec(DacModel.from_pretrained(run.codec))
    AudioEnhancementPipeline(model=model, processor=processor, device="cpu").save_pretrained(run.package)
    processor.audio_tokenizer.half().save_pretrained(run.package / "audio_tokenizer")
    load_in_full(DacSeConfig, run.package)
    load_in_full(DacConfig, run.package / "audio_tokenizer")


def load_in_full(config_class: type[PreTrainedConfig], folder: Path) -> None:
    """Says in a configuration that its weights are float32, whatever they are on disk."""
    config = config_class.from_pretrained(folder)
    config.dtype = "float32"
    config.save_pretrained(folder)


def train_adapters(run: Run) -> None:
    """`package` -> `package/adapters`: a LoRA adapter for each kind of damage, on its part of stage 1's clips."""
    for name, tasks in run.settings["adapters"]["adapters"].items():
        if not (run.package / "adapters" / name).exists():
            train_adapter(run, name, tasks)
    size = sum(path.stat().st_size for path in run.package.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(
            f"{run.package} takes {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}; lower hidden_size or rank"
        )


def train_adapter(run: Run, name: str, tasks: list[str]) -> None:
    """Trains one adapter; its held-out losses, without and with it, are in `adapters/NAME/card.yaml`."""
    options = run.options("adapters") | {
        "model": str(run.package),
        "purpose": ", ".join(tasks),
        "output_dir": str(run.output / "adapters" / name),
    }
    types = DataArguments, AdapterArguments, DacSeTrainingArguments
    data, adapter, args = parse_arguments(*types, argv=as_options(options))
    set_seed(args.seed)
    codec = find_codec(run.codec)
    model = make_model(data, codec)
    train, valid = make_data(data, args.output_dir, codec, model.config)
    trainer = make_trainer(add_adapter(model, adapter), args, train.only(*tasks), valid, all_clips=train)
    before = task_losses(trainer)
    trainer.train()
    save_adapter(trainer.model, args.output_dir, adapter.purpose, before, task_losses(trainer))
    copy_adapter(Path(args.output_dir), run.package / "adapters" / name, NAME)
