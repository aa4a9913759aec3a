"""Writes the cards of repositories: what a checkpoint tells about itself, and the facts its publisher gives.

Knows no repository's state and no weights beyond their number.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import PreTrainedModel, ProcessorMixin

if TYPE_CHECKING:
    from datasets import Dataset

FACTS_NAME = "card.yaml"
SAMPLES_FOLDER = "samples"
DATA_FILES = {"tokens": "tokens-*.parquet", "pairs": "data/*.parquet"}
MODEL_TAGS = ["dacse", "speech-enhancement", "audio", "denoising", "dereverberation", "packet-loss-concealment"]
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "cards"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class DataSource:
    """One source of training data."""

    name: str
    licence: str
    id: str | None = None  # of a data set on the Hub


@dataclass(frozen=True)
class Sample:
    """A recording to be heard before and after."""

    file: str  # the recording before, relative to the checkpoint
    title: str  # what is heard, by whom, under which licence

    @property
    def before(self) -> str:
        """Where a repository holds the recording.

        >>> Sample("audio/rain.wav", "Rain").before, Sample("samples/rain.noisy.flac", "Rain").before
        ('samples/rain.noisy.flac', 'samples/rain.noisy.flac')
        """
        return f"{SAMPLES_FOLDER}/{Path(self.file).stem.removesuffix('.noisy')}.noisy.flac"

    @property
    def after(self) -> str:
        """Where a repository holds it enhanced."""
        return self.before.replace(".noisy.", ".enhanced.")


@dataclass(frozen=True)
class Facts:
    """What no file of a checkpoint can tell: the content of `card.yaml` beside it, every field optional."""

    license: str | None = None  # an identifier of the Hub, such as mit or cc-by-4.0
    base_model: str | None = None  # the model on the Hub that these weights come from
    language: list[str] = field(default_factory=list)  # ISO 639 codes of the speech
    training_data: list[DataSource] = field(default_factory=list)  # of a data set: its sources
    compute: str | None = None  # hardware and hours of the training
    limits: list[str] = field(default_factory=list)  # of this model, beside those of every model of its kind
    samples: list[Sample] = field(default_factory=list)
    task: str | None = None  # of an adapter: what it was made for

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        """Reads `card.yaml` in `folder`; without the file nothing is stated.

        Raises:
            ValueError: the file has a field that no card shows, or lacks one that is needed.
        """
        path = folder / FACTS_NAME
        if not path.exists():
            return cls()
        given = yaml.safe_load(path.read_text())
        try:
            sources = [DataSource(**source) for source in given.pop("training_data", [])]
            samples = [Sample(**sample) for sample in given.pop("samples", [])]
            return cls(**given, training_data=sources, samples=samples)
        except TypeError as error:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"{path}: {error}; its fields are {known}") from error

    def write(self, folder: Path) -> None:
        """Writes `card.yaml`, if anything is stated."""
        stated = {key: value for key, value in asdict(self).items() if value}
        if not stated:
            return
        (folder / FACTS_NAME).write_text(yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))


def render(template: str, metadata: dict, **shown) -> str:
    """A card: the `metadata` that is known as its YAML header, then the template `cards/{template}.md`."""
    known = {key: value for key, value in metadata.items() if value}
    header = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{TEMPLATES.get_template(template + '.md').render(**shown)}"


def model_card(name: str, model: PreTrainedModel, processor: ProcessorMixin, facts: Facts, files_at: str = "") -> str:
    """The README of a model's repository.

    Args:
        name: what a user loads it by: its id on the Hub, or the path of a directory.
        model, processor: those the repository holds.
        facts: the publisher's.
        files_at: what stands before the path of a file in a link to it; nothing when the card lies beside the files.
    """
    metadata = {
        "license": facts.license,
        "language": facts.language,
        "library_name": "transformers",
        "pipeline_tag": "audio-to-audio",
        "tags": MODEL_TAGS,
        "base_model": facts.base_model,
        "datasets": [source.id for source in facts.training_data if source.id],
    }
    return render(
        "model",
        metadata,
        name=name,
        title=title(name),
        facts=facts,
        processor=processor,
        parameters=count(model.num_parameters()),
        codec_parameters=count(processor.audio_tokenizer.num_parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        context=model.config.max_position_embeddings,
        khz=f"{processor.sampling_rate / 1000:g}",
        frame_rate=f"{processor.frame_rate:.2f}",
        token_rate=f"{processor.frame_rate * processor.num_codebooks:.1f}",
        window_seconds=f"{model.config.max_frames / processor.frame_rate:.2f}",
        files_at=files_at,
        evaluation="",
    )


def adapter_card(name: str, config: dict, num_bytes: int, facts: Facts) -> str:
    """The README of an adapter's repository.

    Args:
        name: the adapter's id on the Hub.
        config: PEFT's configuration of it.
        num_bytes: size of its weights.
        facts: the publisher's, with the base model.
    """
    metadata = {
        "license": facts.license,
        "language": facts.language,
        "library_name": "peft",
        "pipeline_tag": "audio-to-audio",
        "tags": [*MODEL_TAGS, "lora"],
        "base_model": facts.base_model,
        "base_model_relation": "adapter",
        "datasets": [source.id for source in facts.training_data if source.id],
    }
    size = f"{num_bytes / 1e6:.2g} MB"
    return render(
        "adapter", metadata, name=name, title=title(name), facts=facts, rank=config["r"], size=size, evaluation=""
    )


def dataset_card(name: str, kind: str, rows: "Dataset", details: dict, facts: Facts) -> str:
    """The README of a data set's repository.

    Args:
        name: the data set's id on the Hub.
        kind: "tokens" or "pairs".
        rows: the data set, as `datasets` loads it.
        details: of a token cache: what it was made from.
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
