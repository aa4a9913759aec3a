"""Keeps generation on the codebook grid, through the hooks of `generate`. Knows ids only: no weights, audio or file.

A finished row is `[bos] noisy [start_clean] clean [eos]`, as in training, with as many clean ids as noisy ones. Which
ids may come next depends on a row's prompt and on how far it has come, on nothing that was generated; so the whole
schedule is drawn up once, from the prompt, and the step only looks it up.
"""

import torch
from transformers.generation import GenerationMixin, LogitsProcessor, LogitsProcessorList

from .decoding_dacse import GridDecoder, can_decode, negate_risk


def count_tokens(prompt_ids, config):
    """Counts each row's noisy codes, and the clean codes already begun.

    >>> from modeling_dacse import DacSeConfig
    >>> prompts = torch.tensor([[1, 1, 0, 5, 7, 3], [0, 5, 7, 3, 6, 8]])
    >>> count_tokens(prompts, DacSeConfig(num_codebooks=2, codebook_size=2))
    (tensor([2, 2]), tensor([0, 2]))

    Args:
        prompt_ids (`torch.LongTensor` of shape `(batch, token)`): Left-padded `[bos] noisy [start_clean] clean`.
        config (`DacSeConfig`): The token layout.

    Returns:
        Two `torch.LongTensor` of shape `(batch,)`: noisy tokens, clean tokens.
    """
    is_code = prompt_ids >= config.first_code_id
    is_clean = (prompt_ids == config.start_clean_token_id).cumsum(-1) > 0
    return (is_code & ~is_clean).sum(-1), (is_code & is_clean).sum(-1)


def check_prompt(prompt_ids, config):
    """Raises unless every row is `[bos] noisy [start_clean]`, with clean tokens begun or not, in the codec's order.

    Args:
        prompt_ids (`torch.LongTensor` of shape `(batch, token)`): Left-padded prompts.
        config (`DacSeConfig`): The token layout and the context.

    Raises:
        ValueError: For the first row without `start_clean`, whose noisy part is not whole frames or exceeds the
            context, with more clean than noisy tokens, or with an id that is not of its place's codebook.
    """
    rows = (prompt_ids != config.start_clean_token_id).all(-1).nonzero()
    if len(rows):
        raise ValueError(
            f"row {int(rows[0])} of the prompt has no start_clean token (id {config.start_clean_token_id}): a prompt "
            "is [bos] noisy [start_clean], as the processor builds it"
        )
    noisy, begun = count_tokens(prompt_ids, config)
    rows = ((noisy == 0) | (noisy % config.num_codebooks != 0)).nonzero()
    if len(rows):
        raise ValueError(
            f"row {int(rows[0])} of the prompt has {int(noisy[rows[0]])} noisy tokens, not one or more whole frames "
            f"of {config.num_codebooks} codebooks: give every token of a frame"
        )
    frames = noisy // config.num_codebooks
    rows = (frames > config.max_frames).nonzero()
    if len(rows):
        raise ValueError(
            f"row {int(rows[0])} of the prompt has {int(frames[rows[0]])} frames, but a context of "
            f"{config.max_position_embeddings} tokens holds {config.max_frames}: enhance shorter windows"
        )
    rows = (begun > noisy).nonzero()
    if len(rows):
        raise ValueError(
            f"row {int(rows[0])} of the prompt has {int(begun[rows[0]])} clean tokens for {int(noisy[rows[0]])} noisy "
            "ones: give at most as many"
        )
    # Codes lie on both sides of start_clean; the noisy ones begin whole frames before it.
    start = (prompt_ids == config.start_clean_token_id).int().argmax(-1, keepdim=True)
    offset = torch.arange(prompt_ids.shape[1], device=prompt_ids.device) - start
    expected = torch.where(offset > 0, offset - 1, offset) % config.num_codebooks
    codebook = (prompt_ids - config.first_code_id) // config.codebook_size
    misplaced = ((offset >= -noisy[:, None]) & (offset != 0) & (codebook != expected)).nonzero()
    if len(misplaced):
        row, token = misplaced[0].tolist()
        raise ValueError(
            f"id {int(prompt_ids[row, token])} at token {token} of row {row} of the prompt is not of codebook "
            f"{int(expected[row, token])}: codes go frame by frame, in each frame by codebook, padding on the left"
        )


def check_forced_ids(forced_ids, prompt_ids, config):
    """Raises unless `forced_ids` gives each clean token an id of its codebook, or -1.

    Args:
        forced_ids (`torch.LongTensor` of shape `(batch, clean token)`): As wide as the longest row's clean part.
        prompt_ids (`torch.LongTensor` of shape `(batch, token)`): Checked prompts.
        config (`DacSeConfig`): The token layout.

    Raises:
        ValueError: If the shape differs or an id is off its codebook.
    """
    shape = [len(prompt_ids), int(count_tokens(prompt_ids, config)[0].max())]
    if list(forced_ids.shape) != shape:
        raise ValueError(
            f"forced_ids has shape {list(forced_ids.shape)}, but the prompts' clean tokens make {shape}: give an id, "
            "or -1, for each of them"
        )
    expected = torch.arange(shape[1], device=forced_ids.device) % config.num_codebooks
    codebook = (forced_ids - config.first_code_id) // config.codebook_size
    misplaced = ((forced_ids != -1) & (codebook != expected)).nonzero()
    if len(misplaced):
        row, token = misplaced[0].tolist()
        raise ValueError(
            f"forced_ids[{row}, {token}] is {int(forced_ids[row, token])}, which is not of codebook "
            f"{int(expected[token])}: give an id of that codebook, or -1 to leave the token free"
        )


def check_code_vectors(code_vectors, config, generation_config):
    """Raises unless `code_vectors` gives each code of the layout a vector, and one code is to be picked at a time.

    Args:
        code_vectors (`torch.FloatTensor` of shape `(codebook, code, size)`): As the processor gives them.
        config (`DacSeConfig`): The token layout.
        generation_config (`GenerationConfig`): Of the call.

    Raises:
        ValueError: If the shape differs, or for sampling and beams.
    """
    shape = (config.num_codebooks, config.codebook_size)
    if code_vectors.ndim != 3 or code_vectors.shape[:2] != shape:
        raise ValueError(
            f"code_vectors has shape {tuple(code_vectors.shape)}, but this model speaks {shape[0]} codebooks of "
            f"{shape[1]} codes: give those of its own processor, (codebook, code, size)"
        )
    if generation_config.do_sample or generation_config.num_beams > 1:
        raise ValueError(
            "code_vectors choose one code by what all codes are expected to sound like, which is neither sampling nor "
            "beam search: leave them out, or do_sample and num_beams"
        )


def draw_schedule(prompt_ids, config, forced_ids=None):
    """Draws up which ids each row may take at every coming token: a half-open range of them.

    A code comes from its codebook's range; after the last clean code only `eos` may come, and after that only `pad`.

    >>> from modeling_dacse import DacSeConfig
    >>> config = DacSeConfig(num_codebooks=2, codebook_size=10)
    >>> lowest, stop = draw_schedule(torch.tensor([[0, 7, 17, 3]]), config)
    >>> lowest.tolist(), stop.tolist()
    ([[5, 15, 2, 1]], [[15, 25, 3, 2]])
    >>> draw_schedule(torch.tensor([[0, 7, 17, 3]]), config, torch.tensor([[-1, 17]]))[0].tolist()
    [[5, 17, 2, 1]]

    Args:
        prompt_ids (`torch.LongTensor` of shape `(batch, token)`): Checked prompts.
        config (`DacSeConfig`): The token layout.
        forced_ids (`torch.LongTensor` of shape `(batch, clean token)`, *optional*): Ids that must come, -1 where free.

    Returns:
        Two `torch.LongTensor` of shape `(batch, new token)`: the lowest legal id, and the first id above the legal
        ones. The last column is the `pad` that every row ends in.
    """
    noisy, begun = count_tokens(prompt_ids, config)
    clean = torch.arange(int((noisy - begun).max()) + 2, device=prompt_ids.device) + begun[:, None]
    lowest = config.first_code_id + clean % config.num_codebooks * config.codebook_size
    only = torch.full_like(clean, -1)
    if forced_ids is not None:
        only = forced_ids.gather(1, clean.clamp(max=forced_ids.shape[1] - 1))
    only = only.masked_fill(clean == noisy[:, None], config.eos_token_id)
    only = only.masked_fill(clean > noisy[:, None], config.pad_token_id)
    return torch.where(only < 0, lowest, only), torch.where(only < 0, lowest + config.codebook_size, only + 1)


class FrameGridLogitsProcessor(LogitsProcessor):
    """Leaves each row only the ids its schedule allows at its next token.

    Args:
        lowest, stop (`torch.LongTensor` of shape `(row, new token)`): The schedule of [`draw_schedule`].
        prompt_length (`int`): Tokens of the prompt, padding included.
        first_code_id (`int`): Of the token layout.
        code_vectors (`torch.FloatTensor` of shape `(codebook, code, size)`, *optional*): By which the scores of a
            codebook become those of [`negate_risk`].
    """

    def __init__(self, lowest, stop, prompt_length: int, first_code_id: int, code_vectors=None):
        self.lowest, self.stop, self.prompt_length = lowest, stop, prompt_length
        self.first_code_id, self.code_vectors = first_code_id, code_vectors

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token = input_ids.shape[1] - self.prompt_length
        lowest, stop = self.lowest[:, token, None], self.stop[:, token, None]
        if self.code_vectors is not None:
            scores = self.weigh_risks(scores, lowest, is_free=stop - lowest > 1)
        ids = torch.arange(scores.shape[1], device=scores.device)
        return scores.masked_fill((ids < lowest) | (ids >= stop), -torch.inf)

    def weigh_risks(self, scores: torch.Tensor, lowest: torch.Tensor, is_free: torch.Tensor) -> torch.Tensor:
        """Scores (row, id) with those of the codebook that is due exchanged, in rows that may choose."""
        codes = torch.arange(self.code_vectors.shape[1], device=lowest.device)
        codebook = ((lowest - self.first_code_id) // len(codes)).clamp(min=0)
        ids = self.first_code_id + codebook * len(codes) + codes
        risks = negate_risk(scores.gather(1, ids).float(), self.code_vectors[codebook[:, 0]]).to(scores.dtype)
        return torch.where(is_free, scores.scatter(1, ids, risks), scores)


class DacSeGenerationMixin(GenerationMixin):
    """`generate` on the codebook grid: a prompt in, `prompt, clean ids, eos, pad ...` out, whatever the decoding mode.

    Each row stops at its own length, unless `max_new_tokens` cuts it shorter. Beyond the arguments of
    [`~transformers.GenerationMixin.generate`], `forced_ids` (`torch.LongTensor` of shape `(batch, clean token)`) gives
    clean ids that must come, counted from a row's first clean token, and -1 where the model chooses. `code_vectors`
    (`torch.FloatTensor` of shape `(codebook, code, size)`, the processor's) has greedy decoding take not the likeliest
    code but the one nearest to the mean of what the model expects: the choice of least Bayes risk (Kumar and Byrne,
    2004, aclanthology.org/N04-1022) for the squared error. A model that is not sure then says something in between.
    """

    def adjust_generation_fn(self, *args, **kwargs):
        """Takes the special ids of a loaded generation configuration from the token layout, their only source."""
        super().adjust_generation_fn(*args, **kwargs)
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            setattr(self.generation_config, name, getattr(self.config, name))

    def _prepare_generation_config(self, generation_config, forced_ids=None, code_vectors=None, **kwargs):
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        # This call's own copy, which reaches every hook.
        if forced_ids is not None:
            generation_config.forced_ids = forced_ids
        if code_vectors is not None:
            check_code_vectors(code_vectors, self.config, generation_config)
            generation_config.code_vectors = code_vectors.to(self.device, torch.float32)
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
            generation_config.max_new_tokens = int((noisy - begun).max()) + 1
        return super()._prepare_generated_length(
            generation_config,
            has_default_max_length,
            model_input_name=model_input_name,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )

    def _get_logits_processor(self, generation_config, encoder_input_ids, logits_processor, **kwargs):
        schedule = draw_schedule(encoder_input_ids, self.config, getattr(generation_config, "forced_ids", None))
        rows_per_prompt = max(generation_config.num_beams, generation_config.num_return_sequences)
        lowest, stop = (bound.repeat_interleave(rows_per_prompt, dim=0) for bound in schedule)
        # Behind the user's processors; before top-k and its like, which so choose among legal ids only.
        grid = FrameGridLogitsProcessor(
            lowest,
            stop,
            prompt_length=encoder_input_ids.shape[1],
            first_code_id=self.config.first_code_id,
            code_vectors=getattr(generation_config, "code_vectors", None),
        )
        return super()._get_logits_processor(
            generation_config,
            encoder_input_ids=encoder_input_ids,
            logits_processor=LogitsProcessorList([*logits_processor, grid]),
            **kwargs,
        )

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus=False,
        streamer=None,
        **kwargs,
    ):
        """Greedy decoding and sampling, by [`GridDecoder`] where it gives what the library's loop would."""
        if (
            synced_gpus
            or streamer is not None
            or not can_decode(self, input_ids, logits_processor, stopping_criteria, generation_config, kwargs)
        ):
            return super()._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **kwargs
            )
        grid, *warpers = logits_processor
        return GridDecoder(
            self,
            input_ids,
            (grid.lowest, grid.stop),
            count_tokens(input_ids, self.config),
            warpers,
            generation_config.do_sample,
            grid.code_vectors,
            generation_config.max_length - input_ids.shape[1],
        ).run()
