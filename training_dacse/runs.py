"""The pieces of a run put together: model, token caches and trainer from a run's arguments."""

from pathlib import Path

from accelerate import PartialState
from transformers import DacModel

from modeling_dacse import DacSeConfig, DacSeForEnhancement

from .arguments import DacSeTrainingArguments, DataArguments
from .collator import TokenCollator
from .data import TokenCache, build_token_cache, load_codec
from .pairs import PairedFiles, corpus_pairs
from .trainer import DacSeTrainer


def make_model(name: str, codec: DacModel, overrides: str | None = None, num_codebooks: int | None = None):
    """A new model of a size fitted to a codec's grid, or one from a folder or the Hub.

    Raises:
        ValueError: a model whose codebooks are not the codec's.
    """
    grid = {"num_codebooks": num_codebooks or codec.config.n_codebooks, "codebook_size": codec.config.codebook_size}
    if "/" not in name and not Path(name).exists():
        config = DacSeConfig.from_size(name, **grid)
        if overrides:
            config.update_from_string(overrides)
        return DacSeForEnhancement(config)
    model = DacSeForEnhancement.from_pretrained(name)
    for key, value in grid.items():
        if getattr(model.config, key) != value:
            raise ValueError(
                f"{name}: {key} is {getattr(model.config, key)}, but the codec has {value}; give its own codec"
            )
    return model


def token_caches(data: DataArguments, output_dir: str, config: DacSeConfig) -> tuple[TokenCache, TokenCache]:
    """Builds, or finds, the caches of training and held-out clips; the first process of a launch does the work."""
    codec = load_codec(data.codec).config
    rate, hop = codec.sampling_rate, codec.hop_length
    common = {"max_seconds": config.max_frames * hop / rate, "skip_broken": data.skip_broken}
    sources = {"noise": data.noise, "rooms": data.rooms, "music": data.music}

    def degraded(split: str, seed: int, in_turn: bool):
        speech = data.valid_data if split == "valid" and data.valid_data else data.data
        options = {"split": split, "where": data.where, "seed": seed, "tasks_in_turn": in_turn}
        return corpus_pairs(speech, data.recipe, rate, hop, **sources, **common, **options)

    folder = Path(data.cache or Path(output_dir) / "tokens")
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first():
        caches = []
        for split, seed in (("train", data.pairs_seed), ("valid", data.pairs_seed + 1)):
            if data.recipe:
                pairs = degraded(split, seed, in_turn=split == "valid")
                count = data.train_clips if split == "train" else data.valid_clips * len(pairs.recipe.tasks)
            else:
                speech = data.valid_data if split == "valid" and data.valid_data else data.data
                pairs = PairedFiles(speech, rate, hop, common["max_seconds"])
                count = len(pairs)
            cache = build_token_cache(folder / split, pairs, data.codec, count, data.cache_processes)
            cache.num_codebooks = config.num_codebooks
            caches.append(cache)
    return tuple(caches)


def make_trainer(model, args: DacSeTrainingArguments, train, valid) -> DacSeTrainer:
    """The trainer of a stage over two token caches."""
    return DacSeTrainer(
        model=model,
        args=args,
        tasks=train.tasks,
        train_dataset=train,
        eval_dataset=valid,
        data_collator=TokenCollator(model.config),
    )
