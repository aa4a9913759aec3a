"""The pieces of a run put together: model, data and trainer from a run's arguments."""

import gc
import logging
import math
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from transformers import DacModel

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from processing_dacse import DacSeProcessor

from .arguments import DacSeTrainingArguments, DataArguments
from ..tokens.collate import TokenCollator
from ..tokens.cache import TokenCache, TokensOnTheFly, build_token_cache, stream_tokens
from .listening import AudioCallback
from ..clips.pairs import DegradedPairs, PairedFiles, corpus_pairs
from .requantizing import start_as_quantizer
from .subsampling import SubsamplingTrainer
from .trainer import DacSeTrainer

logger = logging.getLogger(__name__)

SHUFFLED_CLIPS = 1000  # of a stream, held in memory to draw the next one from


def last_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written whole: a killed run may leave half of one, without its last file."""
    whole = [state.parent for state in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def make_model(data: DataArguments, codec: DacModel) -> DacSeForEnhancement:
    """A new model of a size fitted to a codec's grid, or one from a folder or the Hub.

    Raises:
        ValueError: a model whose codebooks are not the codec's.
    """
    grid = {
        "num_codebooks": data.num_codebooks or codec.config.n_codebooks,
        "codebook_size": codec.config.codebook_size,
    }
    if "/" not in data.model and not Path(data.model).exists():
        config = DacSeConfig.from_size(data.model, **grid)
        if data.model_overrides:
            config.update_from_string(data.model_overrides)
            if "head_dim" not in data.model_overrides:
                config.head_dim = config.hidden_size // config.num_attention_heads
        config.window_frames = data.window_frames
        model = DacSeForEnhancement(config)
        if data.start_as_quantizer:
            start_as_quantizer(model, codec)
        return model
    # In full: at bf16's eight bits the steps of a small learning rate round to nothing.
    model = DacSeForEnhancement.from_pretrained(data.model, dtype=torch.float32)
    for key, value in grid.items():
        if getattr(model.config, key) != value:
            raise ValueError(
                f"{data.model}: {key} is {getattr(model.config, key)}, but the codec has {value}; give the codec the "
                "model was trained with"
            )
    return model


def make_pairs(data: DataArguments, split: str, codec: DacModel, config: DacSeConfig) -> DegradedPairs | PairedFiles:
    """The training (`split="train"`) or held-out (`"valid"`) pairs of a run."""
    rate, hop = codec.config.sampling_rate, codec.config.hop_length
    folder = data.valid_data if split == "valid" and data.valid_data else data.data
    window = {"max_seconds": (config.window_frames or config.max_frames) * hop / rate}
    window["whole"] = config.window_frames is not None
    if data.recipe is None:
        part = "all" if data.valid_data else split
        return PairedFiles(folder, rate, hop, **window, part=part, skip_broken=data.skip_broken)
    return corpus_pairs(
        folder,
        data.recipe,
        rate,
        hop,
        split=split,
        where=data.where,
        noise=data.noise,
        rooms=data.rooms,
        music=data.music,
        tasks=data.tasks,
        seed=data.pairs_seed + (split == "valid"),
        tasks_in_turn=split == "valid",
        skip_broken=data.skip_broken,
        **window,
    )


def make_data(data: DataArguments, output_dir: str, codec: DacModel, config: DacSeConfig) -> tuple:
    """Training and held-out rows: caches, built by the first process of a launch, or training rows without one.

    Raises:
        ValueError: held-out speech that is also trained on.
    """
    valid = make_pairs(data, "valid", codec, config)
    folder = Path(data.cache or Path(output_dir) / "tokens")
    here = PartialState()
    building = {
        "codec_path": data.codec or data.model,
        "num_processes": data.cache_processes,
        "device": str(here.device) if here.device.type == "cuda" else None,
    }
    with here.main_process_first():
        count = data.valid_clips * len(valid.tasks) if data.recipe else len(valid)
        held_out = build_token_cache(folder / "valid", valid, count=count, **building)
        held_out.num_codebooks = config.num_codebooks
        if data.stream:
            draws = make_pairs(replace(data, data=data.valid_data), "train", codec, config)
            stream = load_dataset(data.data, split="train", streaming=True).shuffle(
                seed=data.pairs_seed, buffer_size=SHUFFLED_CLIPS
            )
            return stream_tokens(stream, draws, codec, config.num_codebooks), held_out
        train = make_pairs(data, "train", codec, config)
        if data.recipe and data.valid_data is None and train.speech.fingerprint == valid.speech.fingerprint:
            raise ValueError(f"{data.data} has no split of its own to hold out; give other speakers as valid_data")
        count = data.train_clips if data.recipe else len(train)
        if data.on_the_fly:
            return TokensOnTheFly(train, codec, count, config.num_codebooks), held_out
        rows = build_token_cache(folder / "train", train, count=count, **building)
    rows.num_codebooks = config.num_codebooks
    return rows, held_out


def make_trainer(
    model,
    args: DacSeTrainingArguments,
    train,
    valid: TokenCache,
    codec: DacModel | None = None,
    all_clips: TokenCache | None = None,
):
    """The trainer of a stage.

    Args:
        model, args: of the stage.
        train, valid: clips to train on, and held-out ones of all tasks.
        codec: with it and `listen_clips`, held-out clips are enhanced at every evaluation.
        all_clips: where `train` is a part of them: by these it is told how common codes are, so that losses of
            trainers with other parts can be compared.
    """
    trainer = (SubsamplingTrainer if args.tokens_per_frame else DacSeTrainer)(
        model=model,
        args=args,
        tasks=valid.tasks,
        train_dataset=train,
        eval_dataset=valid,
        data_collator=TokenCollator(model.config),
        all_clips=all_clips,
    )
    logger.info("training on %s", args.device)
    if codec is not None and args.listen_clips:
        clips = {f"{valid.rows[number]['task']}_{number}": valid[number] for number in range(args.listen_clips)}
        trainer.add_callback(AudioCallback(clips, codec, args.output_dir))
    return trainer


def save_for_use(trainer: DacSeTrainer, codec: DacModel) -> None:
    """Leaves model and processor in the output folder, as `dacse enhance --model` reads them."""
    trainer.save_model()
    config = trainer.model.config
    if trainer.is_world_process_zero() and config.num_codebooks == codec.config.n_codebooks:
        DacSeProcessor.from_codec(codec, first_code_id=config.first_code_id).save_pretrained(trainer.args.output_dir)


def end_training(*trainers: DacSeTrainer) -> None:
    """Leaves the process group, as every process must before it exits: gloo's threads outlive Python and abort it.

    What wraps the models goes first: as the last owner of the group it would wait, with Python's lock in its hands,
    for threads that may want that lock (pytorch/pytorch#56297).
    """
    for trainer in trainers:
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()
    gc.collect()
    trainers[0].accelerator.end_training()


def task_losses(trainer: DacSeTrainer) -> dict[str, float]:
    """Held-out loss (nats per token) of every task."""
    metrics = trainer.evaluate()
    return {task: metrics.get(f"eval_loss/{task}", math.nan) for task in trainer.tasks}
