"""Writes the cards of repositories: what a checkpoint tells about itself, and the facts its publisher states.

Knows no repository's state and no weights beyond their number.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors import safe_open
from transformers import PreTrainedModel, ProcessorMixin

from processing_dacse.processing_dacse import CODEC_FOLDER

from .evaluation import eval_results, read_summary, score_table
from .facts import Facts

if TYPE_CHECKING:
    from datasets import Dataset

TOKEN_FILES = {"train": "train/*.arrow", "validation": "valid/*.arrow"}
DATA_FILES = {
    "tokens": [{"split": split, "path": path} for split, path in TOKEN_FILES.items()],
    "pairs": "data/*.parquet",
}
MODEL_TAGS = ["dacse", "speech-enhancement", "audio", "denoising", "dereverberation", "packet-loss-concealment"]
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "cards"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, metadata: dict, **shown) -> str:
    """A card: the `metadata` that is known as its YAML header, then the template `cards/{template}.md`."""
    known = {key: value for key, value in metadata.items() if value}
    header = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{TEMPLATES.get_template(template + '.md').render(**shown)}"


def model_card(
    name: str, model: PreTrainedModel, processor: ProcessorMixin, facts: Facts, folder: Path, files_at: str = ""
) -> str:
    """The README of a model's repository.

    Args:
        name: what a user loads it by: its id on the Hub, or the path of a directory.
        model, processor: those the repository holds.
        facts: the publisher's; their paths are relative to `folder`.
        folder: the repository.
        files_at: what stands before the path of a file in a link to it; nothing when the card lies beside the files.
    """
    shown, metadata = enhancement_parts(name, facts, folder)
    return render(
        "model",
        metadata | {"library_name": "transformers", "tags": MODEL_TAGS, "widget": widget(facts)},
        **shown,
        rivals=list(dict.fromkeys(system for sample in facts.samples for system in sample.rivals)),
        has_handler=(folder / "handler.py").is_file(),
        processor=processor,
        parameters=count(model.num_parameters()),
        codec_parameters=count(processor.audio_tokenizer.num_parameters()),
        dtype=stored_dtype(folder),
        codec_dtype=stored_dtype(folder / CODEC_FOLDER),
        config=model.config,
        khz=f"{processor.sampling_rate / 1000:g}",
        frame_rate=f"{processor.frame_rate:.2f}",
        token_rate=f"{processor.frame_rate * processor.num_codebooks:.1f}",
        window_seconds=f"{(processor.window_frames or model.config.max_frames) / processor.frame_rate:.2f}",
        files_at=files_at,
    )


def widget(facts: Facts) -> list[dict[str, str]]:
    """The samples as examples that the Hub shows beside a model; their paths are those of its repository."""
    return [{"example_title": sample.title, "src": sample.before} for sample in facts.samples]


def stored_dtype(folder: Path) -> str:
    """What the weights in a folder are stored in, which may be less than what they are loaded in."""
    with safe_open(min(folder.glob("*.safetensors")), "pt") as weights:
        return str(weights.get_tensor(next(iter(weights.keys()))).dtype).removeprefix("torch.")


def adapter_card(
    name: str, rank: int, num_bytes: int, policy: dict[str, int | bool], facts: Facts, folder: Path
) -> str:
    """The README of an adapter's repository.

    Args:
        name: the adapter's id on the Hub.
        rank: of its matrices.
        num_bytes: size of its weights.
        policy: what the processor of its base asks of every call.
        facts: the publisher's, with the base model; their paths are relative to `folder`.
        folder: the repository.
    """
    shown, metadata = enhancement_parts(name, facts, folder)
    own = {"library_name": "peft", "tags": [*MODEL_TAGS, "lora"], "base_model_relation": "adapter"}
    return render("adapter", metadata | own, **shown, rank=rank, size=f"{num_bytes / 1e6:.2g} MB", policy=policy)


def enhancement_parts(name: str, facts: Facts, folder: Path) -> tuple[dict, dict]:
    """What the cards of a model and of an adapter share: values to show, and metadata."""
    runs = [(read_summary(folder / run.run, run.system), run.system) for run in facts.evaluations]
    shown = {
        "name": name,
        "title": title(name),
        "facts": facts,
        "evaluations": [(summary["test_set"], score_table(summary, system, title(name))) for summary, system in runs],
    }
    results = [result for summary, system in runs for result in eval_results(summary, system)]
    metadata = {
        "license": facts.license,
        "language": facts.language,
        "pipeline_tag": "audio-to-audio",
        "base_model": facts.base_model,
        "datasets": [source.id for source in facts.training_data if source.id],
        "model-index": eval_results_to_model_index(title(name), results) if results else None,
    }
    return shown, metadata


def dataset_card(name: str, kind: str, rows: "Dataset", details: dict, facts: Facts) -> str:
    """The README of a data set's repository.

    Args:
        name: the data set's id on the Hub.
        kind: "tokens" or "pairs".
        rows: the data set, as `datasets` loads it.
        details: of tokens: what they were made from.
        facts: the publisher's.
    """
    metadata = {
        "license": facts.license,
        "language": facts.language,
        "task_categories": ["audio-to-audio"],
        "tags": ["dacse", "speech-enhancement", "audio"],
        "configs": [{"config_name": "default", "data_files": DATA_FILES[kind]}],
    }
    tasks = sorted(Counter(rows["task"]).items()) if kind == "tokens" else []
    return render(
        kind, metadata, name=name, title=title(name), facts=facts, num_rows=len(rows), details=details, tasks=tasks
    )


def title(name: str) -> str:
    """The last part of an id or path.

    >>> title("org/dac-se1"), title("models/dac-se1/")
    ('dac-se1', 'dac-se1')
    """
    return Path(name).name


def count(number: int) -> str:
    """A number of parameters as people write it.

    >>> count(921_000_000), count(4_120_000), count(76_600)
    ('0.92 B', '4.1 M', '0.077 M')
    """
    return f"{number / 1e9:.2g} B" if number >= 1e8 else f"{number / 1e6:.2g} M"
