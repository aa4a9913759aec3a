"""The language model: a Llama over codec tokens that answers noisy codes with clean ones. Knows ids only."""

import os
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.dynamic_module_utils import custom_object_save
from transformers.generation import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_dacse import DacSeConfig
from .grid_dacse import (
    FrameGridLogitsProcessor,
    MinimumRiskLogitsProcessor,
    NextCodebookLogitsProcessor,
    RowDrawLogitsProcessor,
    check_forced_ids,
    check_prompt,
    count_tokens,
    draw_schedule,
)


class DacSeForEnhancement(LlamaForCausalLM, GenerationMixin):
    """Speech enhancement as next-token prediction (arXiv 2510.02187): `[bos] noisy [start_clean]` in, clean ids out.

    Weights and `forward` are Llama's, `labels` included. The authors' plain Llama repository loads as it stands.

    `generate` is the library's with the codebook grid: a prompt in, `prompt, clean ids, eos, pad ...` out, whatever
    the decoding mode. The grid comes after every other processor, the caller's and the generation configuration's, and
    always leaves a legal id; what only narrows sampling (temperature, top-k and their like) then chooses among legal
    ids. Each row ends at its own length unless a stopping criterion cuts it shorter. Two arguments are added:

    - `forced_ids` (LongTensor (batch, clean token)): clean ids that must come, counted from a row's first clean token,
      and -1 where the model chooses;
    - `row_seeds` (LongTensor (row,)): with `do_sample`, each row draws from a random stream of its own, made of its
      seed, and torch's global state is neither read nor changed; with `num_return_sequences`, a seed for each of them.
    """

    config_class = DacSeConfig
    config: DacSeConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args: Any, **kwargs: Any) -> "DacSeForEnhancement":
        """Loads safetensors, whole or not at all: the library alone would fill what is missing with random weights.

        Args:
            pretrained_model_name_or_path: As for `transformers.PreTrainedModel.from_pretrained`.
            args: As there.
            kwargs: As there; with `output_loading_info` the caller is told what does not fit and may go on.

        Raises:
            ValueError: If weights are damaged, missing, too many, or of other shapes than the configuration's.
            OSError: If the place cannot be reached, or has no safetensors.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs = {"use_safetensors": True, "ignore_mismatched_sizes": True} | kwargs
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} are damaged ({error}): get them again"
            ) from error
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[fault] and not wants_info:
                raise ValueError(
                    f"the weights in {pretrained_model_name_or_path} are not those of its config.json: "
                    f"{len(info[fault])} {fault.replace('_keys', '')}, such as {min(info[fault])}"
                )
        # What lies beside the weights, such as adapters, is looked for at the same place and revision.
        model.config._commit_hash = kwargs.get("revision")
        if subfolder := kwargs.get("subfolder"):
            model.config._name_or_path = os.path.join(model.config._name_or_path, subfolder)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves the model with its code, and with that of the pipeline its configuration names.

        `AutoModelForCausalLM` finds the class as `AutoModel` does.
        """
        auto_map = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = auto_map | {"AutoModelForCausalLM": f"{__name__.split('.')[-1]}.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)
        for task in getattr(self.config, "_pipelines_aside", {}):
            custom_object_save(PIPELINE_REGISTRY.supported_tasks[task]["impl"], save_directory)

    @torch.no_grad()
    def token_probabilities(self, ids: torch.LongTensor) -> torch.FloatTensor:
        """How likely the model finds each clean id, among the codes of its codebook and given all ids before it.

        One forward pass a row over what is finished, so that `generate` need not keep a vocabulary of scores for every
        token; the logits in memory are those of one codebook of one row.

        Args:
            ids: (batch, token): what `generate` returns.

        Returns:
            (batch, token): probabilities of the clean ids, nan at every other token.
        """
        return torch.cat([self._row_probabilities(row[None]) for row in ids])

    def _row_probabilities(self, ids: torch.LongTensor) -> torch.FloatTensor:
        layout = self.config
        attention_mask = (ids != layout.pad_token_id).cumsum(-1).clamp(max=1)  # padding on the right changes nothing
        hidden = self.model(
            ids, attention_mask=attention_mask, position_ids=attention_mask.cumsum(-1) - 1, use_cache=False
        ).last_hidden_state
        is_clean = ((ids == layout.start_clean_token_id).cumsum(-1) > 0) & (ids >= layout.first_code_id)
        codebook = (ids - layout.first_code_id).div(layout.codebook_size, rounding_mode="floor")
        probabilities = torch.full(ids.shape, torch.nan, device=ids.device)
        for index in range(layout.num_codebooks):
            rows, tokens = (is_clean & (codebook == index)).nonzero(as_tuple=True)
            first = layout.first_code_id + index * layout.codebook_size
            logits = self.lm_head(hidden[rows, tokens - 1])[:, first : first + layout.codebook_size].float()
            codes = ids[rows, tokens, None] - first
            probabilities[rows, tokens] = logits.softmax(-1).gather(1, codes)[:, 0]
        return probabilities

    def risk_processor(self, code_vectors: torch.FloatTensor) -> MinimumRiskLogitsProcessor:
        """For `generate(logits_processor=[...])`: greedy decoding by the least risk, given what each code stands for.

        Args:
            code_vectors: (codebook, code, size): the processor's.

        Raises:
            ValueError: If they are not of this model's codes.
        """
        shape = (self.config.num_codebooks, self.config.codebook_size)
        if code_vectors.dim() != 3 or tuple(code_vectors.shape[:2]) != shape:
            raise ValueError(
                f"code_vectors have shape {tuple(code_vectors.shape)}, but this model speaks {shape[0]} codebooks of "
                f"{shape[1]} codes: give those of its own processor, (codebook, code, size)"
            )
        return MinimumRiskLogitsProcessor(code_vectors, self.config.first_code_id)

    @property
    def fast_decoder(self) -> Callable | None:
        """For `generate(custom_generate=...)`: the same ids sooner, for plain greedy decoding and sampling.

        None in a process without this package, and where a forward hook or another `forward` is to be called, since
        the fast decoder calls neither.
        """
        try:
            from modeling_dacse.fast.decoding import decode_grid
            from modeling_dacse.modeling_dacse import DacSeForEnhancement as Installed
        except ImportError:
            return None
        hooks = (module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        is_own = isinstance(self, Installed) and "forward" not in vars(self) and not any(hooks)
        return decode_grid if is_own else None

    def generate_batch(
        self, inputs: list[list[int]], generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The library's continuous batching; each prompt is answered with as many clean ids as it has noisy ones.

        Args:
            inputs: Prompts, unpadded.
            generation_config: As there.
            kwargs: As there; `max_new_tokens` cuts answers shorter.

        Returns:
            The library's results by request, in the order of the prompts.

        Raises:
            ValueError: If a prompt is none.
        """
        limit = kwargs.pop("max_new_tokens", None)
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(inputs):
            ids = torch.tensor([prompt])
            check_prompt(ids, self.config)
            noisy, begun = count_tokens(ids, self.config)
            missing = int(noisy - begun)
            by_length.setdefault(missing if limit is None else min(missing, limit), []).append(index)
        answers = {}
        for length, indices in by_length.items():
            results = super().generate_batch(
                [inputs[index] for index in indices], generation_config, max_new_tokens=length, **kwargs
            )
            answers |= dict(zip(indices, results.values(), strict=True))
        return {f"req_{index}": answers[index] for index in sorted(answers)}

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Takes the special ids of a loaded generation configuration from the token layout, their only source."""
        super().adjust_generation_fn(*args, **kwargs)
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            setattr(self.generation_config, name, getattr(self.config, name))

    def _prepare_generation_config(self, generation_config, forced_ids=None, row_seeds=None, **kwargs):
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        # This call's own copy, which reaches every hook.
        if forced_ids is not None:
            generation_config.forced_ids = forced_ids
        if row_seeds is not None:
            if not generation_config.do_sample or generation_config.num_beams > 1:
                raise ValueError("row_seeds draw one id a token: give them with do_sample=True and without beams")
            generation_config.row_seeds = row_seeds
        return generation_config, model_kwargs

    def _prepare_generated_length(
        self, generation_config, has_default_max_length, model_input_name, inputs_tensor, **kwargs
    ):
        if model_input_name != "input_ids":
            raise ValueError(f"{model_input_name} hide the codes that set a row's length and order: give input_ids")
        if generation_config.eos_token_id != self.config.eos_token_id:
            raise ValueError(
                f"eos_token_id is {generation_config.eos_token_id}, but this model ends a row with "
                f"{self.config.eos_token_id}: leave it as it is"
            )
        check_prompt(inputs_tensor, self.config)
        forced_ids = getattr(generation_config, "forced_ids", None)
        if forced_ids is not None:
            check_forced_ids(forced_ids, inputs_tensor, self.config)
        if has_default_max_length and generation_config.max_new_tokens is None:
            noisy, begun = count_tokens(inputs_tensor, self.config)
            generation_config.max_new_tokens = max(1, int((noisy - begun).max()) + 1)
        return super()._prepare_generated_length(
            generation_config,
            has_default_max_length,
            model_input_name=model_input_name,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )

    def _get_logits_processor(
        self, generation_config, encoder_input_ids=None, logits_processor=None, **kwargs
    ) -> LogitsProcessorList:
        # After the generation configuration's and the caller's; before top-k and its like.
        processors = [*(logits_processor or []), self._grid(generation_config, encoder_input_ids)]
        processors = super()._get_logits_processor(
            generation_config,
            encoder_input_ids=encoder_input_ids,
            logits_processor=LogitsProcessorList(processors),
            **kwargs,
        )
        if getattr(generation_config, "row_seeds", None) is not None:
            # The highest of what it gives is the draw: from here on the library decodes greedily.
            processors.append(RowDrawLogitsProcessor(generation_config.row_seeds, encoder_input_ids.shape[1]))
            generation_config.do_sample = False
        return processors

    def _grid(self, generation_config, prompt_ids: torch.LongTensor | None) -> LogitsProcessor:
        if prompt_ids is None:  # continuous batching, which shows a row's last id alone
            return NextCodebookLogitsProcessor(self.config)
        schedule = draw_schedule(prompt_ids, self.config, getattr(generation_config, "forced_ids", None))
        rows_per_prompt = max(generation_config.num_beams, generation_config.num_return_sequences)
        lowest, stop = (bound.repeat_interleave(rows_per_prompt, dim=0) for bound in schedule)
        return FrameGridLogitsProcessor((lowest, stop), prompt_ids.shape[1])


DacSeForEnhancement.register_for_auto_class("AutoModel")
