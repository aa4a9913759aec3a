"""Writes a complete, self-contained repository of a model: weights, codec, remote code, samples, card.

Knows no Hub beyond loading from it.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import soundfile
import torch
from peft import PeftModel
from transformers.utils import cached_file

from modeling_dacse import DacSeForEnhancement
from pipeline_dacse import AudioEnhancementPipeline
from pipeline_dacse.layout_dacse import TOKEN_LAYOUT
from processing_dacse import DacSeProcessor

from . import doors
from .adapter import CONFIG_NAME, copy_adapter, copy_prior
from .card import model_card
from .evaluation import stage_evaluations
from .facts import Facts, Sample
from .places import check_place

SHARD_SIZE = "5GB"
ENDPOINT = ("handler.py", "requirements.txt")  # what an Inference Endpoint looks for


def open_checkpoint(
    source: str, codec: str | None = None, dtype: torch.dtype | None = None, adapter: str | None = None
) -> AudioEnhancementPipeline:
    """Loads a checkpoint on the CPU, with this package's classes whatever code lies beside it.

    Args:
        source: directory or Hub id of a dacse repository, or of a plain Llama of its token layout.
        codec: directory or Hub id of the `DacModel` it speaks, if none is in `source`.
        dtype: of the language model; by default as stored. The codec stays in float32.
        adapter: directory or Hub id of a LoRA adapter to be merged into the weights, in float32.

    Raises:
        ValueError: a place that can be none, the weights are pickles only, there is no codec, or the token layout
            contradicts it.
    """
    model = open_model(source, dtype, adapter)
    if codec is not None:
        check_place(codec)
    return AudioEnhancementPipeline(model, processor=find_processor(source, codec, model), device="cpu")


def open_model(source: str, dtype: torch.dtype | None = None, adapter: str | None = None) -> DacSeForEnhancement:
    """Loads the language model of a checkpoint on the CPU: `source`, `dtype` and `adapter` as in `open_checkpoint`.

    Raises:
        ValueError: a place that can be none, or the weights are pickles only.
    """
    for place in (source, adapter):
        if place is not None:
            check_place(place)
    refuse_pickled_weights(source)
    model = DacSeForEnhancement.from_pretrained(source, dtype="auto")
    wanted = dtype or model.dtype
    if adapter is not None:
        model = PeftModel.from_pretrained(model.float(), adapter).merge_and_unload()
    for weights in model.parameters():  # `model.to` would round the frequencies of the rotary embedding as well
        weights.data = weights.data.to(wanted)
    return model.eval()


def refuse_pickled_weights(source: str) -> None:
    folder = Path(source)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{source} holds its weights as a pickle ({pickles[0]}), which can run code when loaded; "
            "have its author save it with safetensors"
        )


def find_processor(source: str, codec: str | None, model: DacSeForEnhancement) -> DacSeProcessor:
    if codec is not None:
        return DacSeProcessor.from_codec(codec, **{name: getattr(model.config, name) for name in TOKEN_LAYOUT})
    if cached_file(source, "processor_config.json", _raise_exceptions_for_missing_entries=False) is None:
        raise ValueError(
            f"{source} holds neither processor nor codec; "
            f"make a whole repository of it with `dacse convert {source} DIR --codec descript/dac_44khz`"
        )
    return DacSeProcessor.from_pretrained(source)


def stage_model(
    enhance: AudioEnhancementPipeline,
    source: str,
    folder: Path,
    name: str,
    files_at: str = "",
    merged: bool = False,
) -> None:
    """Fills `folder` with everything a repository of the model needs.

    Args:
        enhance: the model, from `open_checkpoint`.
        source: what it was opened from. If that is a directory, `card.yaml` in it states the facts of the card and
            names the recordings to be heard and the evaluations to be shown; its adapters are taken over.
        folder: an existing, empty folder.
        name: what a user loads the model by.
        files_at: what stands before a file's path in the card's links (see `model_card`).
        merged: an adapter was merged into the weights: adapters and figures of the source are those of others.
    """
    origin = Path(source)
    facts = Facts.read(origin)
    if merged:
        facts = replace(facts, evaluations=[], goals=[], losses=[])
    if facts.base_model is None and not origin.is_dir():
        facts = replace(facts, base_model=source)
    enhance.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    for config in [] if merged else sorted(origin.glob(f"adapters/*/{CONFIG_NAME}")):
        copy_adapter(config.parent, folder / "adapters" / config.parent.name, name)
    copy_prior(source, folder)
    for sample in facts.samples:
        write_sample(enhance, origin, folder, sample)
    facts = replace(facts, samples=[sample.staged for sample in facts.samples])
    facts = stage_evaluations(origin, folder, facts)
    facts.write(folder)
    for file in ENDPOINT:
        shutil.copy(Path(doors.__file__).parent / file, folder)
    card = model_card(name, enhance.model, enhance.processor, facts, folder, files_at)
    (folder / "README.md").write_text(card)


def write_sample(enhance: AudioEnhancementPipeline, origin: Path, folder: Path, sample: Sample) -> None:
    """Writes a recording, what the model makes of it and what others made of it, as 16-bit FLAC."""
    (folder / sample.before).parent.mkdir(exist_ok=True)
    files = {sample.before: sample.file} | {sample.of_rival(name): file for name, file in sample.rivals.items()}
    for target, file in files.items():
        waveform, rate = enhance.processor.load_audio(origin / file)
        soundfile.write(folder / target, waveform.T, rate)
    out = enhance(origin / sample.file)
    soundfile.write(folder / sample.after, out["audio"].T, out["sampling_rate"])
