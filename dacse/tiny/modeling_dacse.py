"""The language model: a Llama over codec tokens that answers noisy codes with clean ones. Knows ids only."""

import torch
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from .configuration_dacse import DacSeConfig
from .generation_dacse import DacSeGenerationMixin
from .int8_dacse import Int8Linear, quantize_layers

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")


class DacSeForEnhancement(DacSeGenerationMixin, LlamaForCausalLM):
    """Speech enhancement as next-token prediction (arXiv 2510.02187): `[bos] noisy [start_clean]` in, clean ids out.

    Weights and `forward` are Llama's, `labels` included. The authors' plain Llama repository loads as it stands.

    Attributes:
        hub_arguments (`dict`): How it was got from the Hub, of `HUB_ARGUMENTS`: what lies beside it is got likewise.
    """

    config_class = DacSeConfig
    config: DacSeConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads safetensors, whole or not at all: the library alone would fill what is missing with random weights.

        Args:
            pretrained_model_name_or_path, args, kwargs: Those of [`~transformers.PreTrainedModel.from_pretrained`].
                With `dtype="int8"`, for a CPU, the matrices of the layers are rounded to 8 bits, and the rest stays as
                stored: a quarter of the memory of float32, and other ids where two are nearly equally likely.

        Raises:
            ValueError: If weights are damaged, missing, too many, or of other shapes than the configuration's.
            OSError: If the place cannot be reached, or has no safetensors.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        wants_int8 = kwargs.get("dtype") in ("int8", torch.int8)
        if wants_int8:
            kwargs["dtype"] = "auto"
            if kwargs.get("config") is not None:  # into which the Auto classes have written int8
                kwargs["config"].dtype = None
        kwargs = {"use_safetensors": True, "ignore_mismatched_sizes": True} | kwargs | {"output_loading_info": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} are damaged ({error}): get them again"
            ) from error
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[fault]:
                raise ValueError(
                    f"the weights in {pretrained_model_name_or_path} are not those of its config.json: "
                    f"{len(info[fault])} {fault.replace('_keys', '')}, such as {min(info[fault])}"
                )
        model.hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        if wants_int8:
            quantize_layers(model)
        return (model, info) if wants_info else model

    def save_pretrained(self, *args, **kwargs):
        """Saves the model with its code; `AutoModelForCausalLM` finds the class as `AutoModel` does.

        Raises:
            ValueError: If the model was loaded in int8, whose rounding is not undone.
        """
        if any(isinstance(module, Int8Linear) for module in self.modules()):
            raise ValueError(
                "this model was loaded in int8, which is for running only: load it without dtype to save it"
            )
        auto_map = getattr(self.config, "auto_map", {})
        self.config.auto_map = auto_map | {"AutoModelForCausalLM": f"{__name__.split('.')[-1]}.{type(self).__name__}"}
        return super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def token_probabilities(self, ids: torch.LongTensor) -> torch.FloatTensor:
        """How likely the model finds each clean id, among the codes of its codebook and given all ids before it.

        One forward pass over finished rows, so that `generate` need not keep a vocabulary of scores for every token.

        Args:
            ids (`torch.LongTensor` of shape `(batch, token)`): What `generate` returns.

        Returns:
            `torch.FloatTensor` of shape `(batch, token)`: probabilities of the clean ids, nan at every other token.
        """
        layout = self.config
        attention_mask = (ids != layout.pad_token_id).cumsum(-1).clamp(max=1)  # padding on the right changes nothing
        hidden = self.model(
            ids, attention_mask=attention_mask, position_ids=attention_mask.cumsum(-1) - 1, use_cache=False
        ).last_hidden_state
        is_clean = ((ids == layout.start_clean_token_id).cumsum(-1) > 0) & (ids >= layout.first_code_id)
        codebook = (ids - layout.first_code_id) // layout.codebook_size
        code = (ids - layout.first_code_id) % layout.codebook_size
        probabilities = torch.full(ids.shape, torch.nan, device=ids.device)
        for index in range(layout.num_codebooks):  # one codebook at a time bounds the memory of the logits
            rows, tokens = (is_clean & (codebook == index)).nonzero(as_tuple=True)
            first = layout.first_code_id + index * layout.codebook_size
            logits = self.lm_head(hidden[rows, tokens - 1])[:, first : first + layout.codebook_size].float()
            probabilities[rows, tokens] = logits.softmax(-1).gather(1, code[rows, tokens, None])[:, 0]
        return probabilities


DacSeForEnhancement.register_for_auto_class("AutoModel")
