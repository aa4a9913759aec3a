"""The pieces of a run put together: model, rows and trainer from a run's arguments."""

import gc
import logging
import math
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import DacModel
from transformers.utils import is_flash_attn_2_available

from modeling_dacse import DacSeConfig, DacSeForEnhancement
from processing_dacse import DacSeProcessor

from ..tokens.cache import TokenCache, TokenRows
from ..tokens.encode import codec_fingerprints, find_processor, first_codebooks, holds_processor
from ..tokens.rolling import RollingTokens
from .arguments import DacSeTrainingArguments, DataArguments
from .listening import AudioCallback
from .objective import Objective, prior_of_model, prior_of_rows
from .strategy import Strategy
from .trainer import DacSeTrainer

logger = logging.getLogger(__name__)

TRAIN, VALID = "train", "valid"  # folders of the tokens
POLICY = ("window_frames", "minimum_risk", "keep_recording")  # of a processor


def last_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written whole: a killed run may leave half of one, without its last file."""
    whole = [state.parent for state in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def make_data(data: DataArguments, config: DacSeConfig) -> tuple[TokenRows, TokenCache]:
    """Rows to train on and held-out ones.

    Raises:
        FileNotFoundError: there are no tokens, or shards are missing.
        ValueError: they do not fit the model.
    """
    books = config.num_codebooks
    held_out = TokenCache(data.tokens, VALID, num_codebooks=books)
    held_out.check_fits(config)
    if data.window_shards:
        window = (data.window_shards, data.fresh_shards)
        return RollingTokens(data.tokens, TRAIN, *window, books, PartialState().is_main_process), held_out
    train = TokenCache(data.tokens, TRAIN, num_codebooks=books)
    train.check_fits(config)
    return train, held_out


def make_model(data: DataArguments) -> DacSeForEnhancement:
    """A new model of a size, on the grid of the tokens, or one from a folder or the Hub.

    Raises:
        ValueError: settings of a new model for one that exists, or tokens of another codec than its own.
    """
    tokens = TokenCache(data.tokens, VALID)
    made = tokens.shards.description
    attention = {"attn_implementation": "flash_attention_2"} if uses_flash_attention() else {}
    if "/" not in data.model and not Path(data.model).exists():
        grid = {
            "num_codebooks": data.num_codebooks or made["num_codebooks"],
            "codebook_size": made["codebook_size"],
        }
        return DacSeForEnhancement._from_config(new_config(data.model, data.model_overrides, grid), **attention)
    for name in ("model_overrides", "num_codebooks"):
        if getattr(data, name) is not None:
            raise ValueError(f"{name} is of a new model, but {data.model} is one that exists; leave it out")
    if holds_processor(data.model) and not made_with(find_processor(data.model).audio_tokenizer, made):
        raise ValueError(
            f"{data.tokens} was made with another codec than that of {data.model}; make tokens with `dacse tokenize "
            f"--codec {data.model}`"
        )
    # In full: at bf16's eight bits the steps of a small learning rate round to nothing.
    return DacSeForEnhancement.from_pretrained(data.model, dtype=torch.float32, **attention)


def new_config(size: str, overrides: str | None, grid: dict) -> DacSeConfig:
    """The configuration of a new model; what an override leaves open of its heads follows it.

    Args:
        size: its name.
        overrides: "hidden_size=256,num_hidden_layers=6", if any.
        grid: codebooks and their size.

    Raises:
        ValueError: an unknown size or override, or heads that share keys and values unevenly.
    """
    config = DacSeConfig.from_size(size, **grid)
    if overrides:
        config.update_from_string(overrides)
        if "num_attention_heads" in overrides and "num_key_value_heads" not in overrides:
            config.num_key_value_heads = config.num_attention_heads
        if "head_dim" not in overrides:
            config.head_dim = config.hidden_size // config.num_attention_heads
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"{config.num_attention_heads} heads cannot share {config.num_key_value_heads} for keys and values; give "
            "num_key_value_heads that divide num_attention_heads"
        )
    return config


def made_with(codec: DacModel, description: dict) -> bool:
    """Whether tokens of a description are a codec's, or their first codebooks are."""
    return codec_fingerprints(codec)[-1] in description["codec_of_first"]


def uses_flash_attention() -> bool:
    """Whether FlashAttention is there, with a device for it."""
    return torch.cuda.is_available() and is_flash_attn_2_available()


def make_objective(
    args: DacSeTrainingArguments, config: DacSeConfig, rows: TokenRows, model_path: str | None = None
) -> Objective:
    """What a run minimises; a model that was trained with a logit adjustment keeps its own unless told otherwise.

    A run that goes on keeps to what it began with: the clips it began with may be gone.

    Args:
        args: of the run.
        config: of the model.
        rows: by which it is told how common codes are.
        model_path: what the model was loaded from.
    """
    begun = last_checkpoint(args.output_dir)
    if begun is not None:
        prior = prior_of_model(begun)
    elif args.logit_adjustment is None:
        exists = model_path is not None and ("/" in model_path or Path(model_path).exists())
        prior = prior_of_model(model_path) if exists else None
    else:
        prior = prior_of_rows(rows.of_epoch(0), config, args.logit_adjustment)
    return Objective(config, prior, args.spoiled_frames)


def make_trainer(
    model,
    args: DacSeTrainingArguments,
    train: TokenRows,
    valid: TokenCache,
    processor: DacSeProcessor | None = None,
    objective: Objective | None = None,
    strategy: Strategy | None = None,
) -> DacSeTrainer:
    """The trainer of a stage.

    Args:
        model, args: of the stage.
        train, valid: clips to train on, and held-out ones of all tasks.
        processor: with it and `listen_clips`, held-out clips are enhanced at every evaluation.
        objective, strategy: in place of those of the arguments.
    """
    trainer = DacSeTrainer(model, args, train, valid, strategy, objective)
    logger.info("training on %s", args.device)
    if processor is not None and args.listen_clips:
        tasks = [valid.tasks[number] for number in valid.task_numbers]
        clips = {f"{tasks[number]}_{number}": valid[number] for number in range(args.listen_clips)}
        trainer.add_callback(AudioCallback(clips, processor, args.output_dir))
    return trainer


def processor_of(data: DataArguments, config: DacSeConfig) -> DacSeProcessor:
    """The processor that is saved with a model: with the codec of the arguments, of the model, or of the tokens.

    A model of the first codebooks gets a codec of those. Clips of one length make a model of one window.
    """
    made = TokenCache(data.tokens, VALID).shards.description
    exists = ("/" in data.model or Path(data.model).exists()) and holds_processor(data.model)
    processor = find_processor(data.codec or (data.model if exists else made["codec_path"]))
    codec = processor.audio_tokenizer
    if not made_with(codec, made):
        raise ValueError(f"{data.tokens} was made with another codec than {data.codec}; give the same one")
    if config.num_codebooks < processor.num_codebooks:
        codec = first_codebooks(codec, config.num_codebooks)
    policy = {"window_frames": made["window_frames"]}
    if exists:
        policy = {name: getattr(processor, name) for name in POLICY}
    return DacSeProcessor.from_codec(codec, first_code_id=config.first_code_id, **policy)


def save_for_use(trainer: DacSeTrainer, processor: DacSeProcessor) -> None:
    """Leaves model and processor in the output folder, as `dacse enhance --model` reads them."""
    trainer.save_model()
    if trainer.is_world_process_zero():
        processor.save_pretrained(trainer.args.output_dir)


def end_training(*trainers: DacSeTrainer) -> None:
    """Leaves the process group, as every process must before it exits: gloo's threads outlive Python and abort it.

    What wraps the models goes first: as the last owner of the group it would wait, with Python's lock in its hands,
    for threads that may want that lock (pytorch/pytorch#56297).
    """
    for trainer in trainers:
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()
        if isinstance(trainer.train_dataset, RollingTokens):
            trainer.train_dataset.end()
    gc.collect()
    trainers[0].accelerator.end_training()


def task_losses(trainer: DacSeTrainer) -> dict[str, float]:
    """Held-out loss (nats per token) of every task."""
    metrics = trainer.evaluate()
    return {task: metrics.get(f"eval_loss/{task}", math.nan) for task in trainer.tasks}
