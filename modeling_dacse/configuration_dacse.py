"""The language model's configuration: a Llama and the token layout it speaks. Knows no audio, codec or file."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig

from .pattern_dacse import PATTERNS, FlattenedPattern

SIZES = {
    # A few million parameters: the embedded model, for laptops and tests.
    "tiny": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024},
    # Width and depth of the 125 M and 350 M models of Brown et al. (2020, arXiv 2005.14165, table 2.1); the
    # intermediate sizes keep near the released models' ratio to the width and meet the named parameter count.
    "125M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "350M": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 3200},
    # The released trainer's shapes.
    "250M": {"hidden_size": 1024, "num_hidden_layers": 18, "num_attention_heads": 16, "intermediate_size": 3000},
    "1B": {"hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24, "intermediate_size": 6144},
    "2B": {"hidden_size": 2048, "num_hidden_layers": 29, "num_attention_heads": 32, "intermediate_size": 8192},
    "4B": {"hidden_size": 2816, "num_hidden_layers": 32, "num_attention_heads": 44, "intermediate_size": 11008},
}
LAYOUT_IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "start_clean_token_id", "unk_token_id")


@strict
class DacSeConfig(LlamaConfig):
    """Configuration of `DacSeForEnhancement`: every field of `transformers.LlamaConfig`, and the token layout.

    The id of a code is `first_code_id + codebook * codebook_size + code`; the special ids lie below `first_code_id`.
    The defaults are the released 1B model's (arXiv 2510.02187).

    Args:
        num_codebooks: Residual codebooks of the codec, so tokens per frame.
        codebook_size: Codes in each codebook.
        first_code_id: Id of code 0 of the first codebook.
        start_clean_token_id: Id between the noisy and the clean tokens.
        unk_token_id: Id the layout reserves; never generated.
        vocab_size: Follows from the layout; checked against it when given.
        pattern: Name of the order in which codes follow one another, a key of `PATTERNS`; the released models' is
            "flattened".

    Raises:
        ValueError: If the layout contradicts itself or `vocab_size`.
    """

    model_type = "dacse"
    default_theta = 100_000.0

    num_codebooks: int = 9
    codebook_size: int = 1024
    first_code_id: int = 5
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    start_clean_token_id: int = 3
    unk_token_id: int = 4
    vocab_size: int | None = None
    pattern: str = "flattened"

    hidden_size: int = 1536
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    max_position_embeddings: int = 8192
    initializer_range: float = 0.005
    attention_dropout: int | float | None = 0.1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        layout_size = self.first_code_id + self.num_codebooks * self.codebook_size
        if self.vocab_size is None:
            self.vocab_size = layout_size
        super().__post_init__(**kwargs)
        if self.num_codebooks < 1 or self.codebook_size < 1:
            raise ValueError(
                f"num_codebooks={self.num_codebooks} and codebook_size={self.codebook_size}: both must be at least 1"
            )
        if self.vocab_size != layout_size:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but {self.first_code_id} special ids and {self.num_codebooks} "
                f"codebooks of {self.codebook_size} codes make {layout_size}: give the num_codebooks, codebook_size "
                "and first_code_id the weights were trained with"
            )
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern is {self.pattern!r}: give one of {', '.join(PATTERNS)}")
        special = {name: getattr(self, name) for name in LAYOUT_IDS}
        if len(set(special.values())) < len(special) or not all(0 <= i < self.first_code_id for i in special.values()):
            raise ValueError(
                f"special ids must differ and lie below first_code_id={self.first_code_id}, got {special}"
            )

    @property
    def max_frames(self) -> int:
        """The most frames one prompt may hold: `[bos] noisy [start_clean] clean [eos]` fills the context.

        >>> DacSeConfig().max_frames
        454
        """
        return (self.max_position_embeddings - 3) // (2 * self.num_codebooks)

    def make_pattern(self) -> FlattenedPattern:
        """The order of this layout's codes."""
        return PATTERNS[self.pattern](self.num_codebooks)

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> "DacSeConfig":
        """The configuration of a named size, with any field overridden.

        >>> DacSeConfig.from_size("250M", num_key_value_heads=4).num_hidden_layers
        18

        Args:
            name: One of `SIZES`.
            overrides: Fields that replace the size's own; `num_key_value_heads` gives grouped-query attention.

        Raises:
            ValueError: If there is no such size.
        """
        if name not in SIZES:
            raise ValueError(f"no size {name!r}: choose one of {', '.join(SIZES)}")
        return cls(**(SIZES[name] | overrides))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`, and takes a plain Llama's as one of ours.

        The authors' repository is a plain Llama. Its keys mean what Llama's defaults make of them; its special ids
        are dropped, because the released trainer wrote ids there (bos 1, pad 0) that its tokenizer contradicts.

        Raises:
            ValueError: If the repository holds another architecture.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "llama":
            config_dict = LlamaConfig.from_dict(config_dict).to_dict()
            config_dict = {name: value for name, value in config_dict.items() if name not in LAYOUT_IDS}
            config_dict |= {"model_type": cls.model_type, "architectures": ["DacSeForEnhancement"]}
        elif "model_type" not in config_dict:
            raise ValueError(f"{pretrained_model_name_or_path} has no config.json that names a model_type")
        elif config_dict["model_type"] != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {config_dict['model_type']} model: give a dacse one, "
                "or a plain Llama of the same token layout"
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "DacSeConfig":
        """Builds the configuration; `custom_pipelines` of tasks that are registered here are set aside for saving.

        `transformers.pipeline` prefers a repository's own pipeline code to a registered class and asks to trust it;
        an installed package needs neither.

        Raises:
            ValueError: If a field is of another type than Llama's, or fields contradict one another.
        """
        aside = {}
        if "custom_pipelines" in config_dict:
            from transformers.pipelines import PIPELINE_REGISTRY

            registered = PIPELINE_REGISTRY.get_supported_tasks()
            pipelines = config_dict["custom_pipelines"]
            aside = {task: spec for task, spec in pipelines.items() if task in registered}
            config_dict = config_dict | {"custom_pipelines": {t: s for t, s in pipelines.items() if t not in aside}}
        try:
            made = super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"config.json is wrong: {error.__cause__}") from error
        config = made[0] if isinstance(made, tuple) else made  # a tuple with return_unused_kwargs
        config._pipelines_aside = aside
        return made

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the `custom_pipelines` that were set aside: what is loaded and saved again is the same."""
        fields = super().to_dict()
        aside = fields.pop("_pipelines_aside", {})
        if aside:
            fields["custom_pipelines"] = aside | fields.get("custom_pipelines", {})
        return fields


DacSeConfig.register_for_auto_class()
