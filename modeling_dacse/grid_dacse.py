"""The codebook grid: which ids may come next, as stateless logits processors. Knows ids only: no weights, audio or file.

A finished row is `[bos] noisy [start_clean] clean [eos]`, as in training, with as many clean ids as noisy ones, and each
clean id is of the codebook of the noisy id at its place. So which ids may come next depends on a row's prompt and on how
far the row has come, on nothing that was generated: the whole schedule is drawn up once, from the prompt, and a step
only looks it up.
"""

import torch
from transformers.generation import LogitsProcessor

from .configuration_dacse import DacSeConfig

Schedule = tuple[torch.LongTensor, torch.LongTensor]  # lowest legal id, first id above the legal ones


def count_tokens(prompt_ids: torch.LongTensor, config: DacSeConfig) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Counts each row's noisy codes, and the clean codes already begun.

    >>> prompts = torch.tensor([[1, 1, 0, 5, 7, 3], [0, 5, 7, 3, 6, 8]])
    >>> count_tokens(prompts, DacSeConfig(num_codebooks=2, codebook_size=2))
    (tensor([2, 2]), tensor([0, 2]))

    Args:
        prompt_ids: (batch, token): left-padded `[bos] noisy [start_clean] clean`.
        config: The token layout.

    Returns:
        Noisy tokens and clean tokens, each (batch,).
    """
    is_code = prompt_ids >= config.first_code_id
    is_clean = (prompt_ids == config.start_clean_token_id).cumsum(-1) > 0
    return (is_code & ~is_clean).sum(-1), (is_code & is_clean).sum(-1)


def check_prompt(prompt_ids: torch.LongTensor, config: DacSeConfig) -> None:
    """Refuses all but `[bos] noisy [start_clean]`, with clean tokens begun or not, in the order of the pattern.

    Args:
        prompt_ids: (batch, token): left-padded prompts.
        config: The token layout and the context.

    Raises:
        ValueError: For the first row without `start_clean`, whose noisy part is not whole frames or exceeds the
            context, with more clean than noisy tokens, or with an id that is not of its place's codebook.
    """
    starts = (prompt_ids == config.start_clean_token_id).sum(-1)
    if row := _first(starts != 1):
        raise ValueError(
            f"row {row[0]} of the prompt has {int(starts[row])} start_clean tokens (id {config.start_clean_token_id}): "
            "a prompt is [bos] noisy [start_clean], as the processor builds it"
        )
    noisy, begun = count_tokens(prompt_ids, config)
    frames, rest = noisy // config.num_codebooks, noisy.remainder(config.num_codebooks)
    if row := _first((noisy == 0) | (rest != 0)):
        raise ValueError(
            f"row {row[0]} of the prompt has {int(noisy[row])} noisy tokens, not one or more whole frames of "
            f"{config.num_codebooks} codebooks: give every token of a frame"
        )
    if row := _first(frames > config.max_frames):
        raise ValueError(
            f"row {row[0]} of the prompt has {int(frames[row])} frames, but a context of "
            f"{config.max_position_embeddings} tokens holds {config.max_frames}: enhance shorter windows"
        )
    if row := _first(begun > noisy):
        raise ValueError(
            f"row {row[0]} of the prompt has {int(begun[row])} clean tokens for {int(noisy[row])} noisy ones: give at "
            "most as many"
        )
    expected = _expected_codebooks(prompt_ids, noisy, config)
    codebook = (prompt_ids - config.first_code_id).div(config.codebook_size, rounding_mode="floor")
    if place := _first((expected >= 0) & (codebook != expected)):
        raise ValueError(
            f"id {int(prompt_ids[place])} at token {place[1]} of row {place[0]} of the prompt is not of codebook "
            f"{int(expected[place])}: codes go in the {config.pattern} pattern, padding on the left"
        )


def check_forced_ids(forced_ids: torch.LongTensor, prompt_ids: torch.LongTensor, config: DacSeConfig) -> None:
    """Refuses `forced_ids` unless they give each clean token an id of its codebook, or -1.

    Args:
        forced_ids: (batch, clean token), as wide as the longest row's clean part.
        prompt_ids: (batch, token): checked prompts.
        config: The token layout.

    Raises:
        ValueError: If the shape differs or an id is off its codebook.
    """
    noisy, _ = count_tokens(prompt_ids, config)
    shape = (len(prompt_ids), int(noisy.max()))
    if tuple(forced_ids.shape) != shape:
        raise ValueError(
            f"forced_ids has shape {tuple(forced_ids.shape)}, but the prompts' clean tokens make {shape}: give an id, "
            "or -1, for each of them"
        )
    lowest = _lowest_ids(prompt_ids, torch.arange(shape[1], device=prompt_ids.device).expand(shape), config)
    is_clean = torch.arange(shape[1], device=prompt_ids.device) < noisy[:, None]
    is_off = (forced_ids < lowest) | (forced_ids >= lowest + config.codebook_size)
    if place := _first(is_clean & (forced_ids != -1) & is_off):
        raise ValueError(
            f"forced_ids[{place[0]}, {place[1]}] is {int(forced_ids[place])}, but this token's codebook has the ids "
            f"{int(lowest[place])} to {int(lowest[place]) + config.codebook_size - 1}: give one of them, or -1 to "
            "leave the token free"
        )


def draw_schedule(
    prompt_ids: torch.LongTensor, config: DacSeConfig, forced_ids: torch.LongTensor | None = None
) -> Schedule:
    """Draws up which ids each row may take at every coming token: a half-open range of them.

    A code comes from its codebook's range; after the last clean code only `eos` may come, and after that only `pad`.

    >>> config = DacSeConfig(num_codebooks=2, codebook_size=10)
    >>> lowest, stop = draw_schedule(torch.tensor([[0, 7, 17, 3]]), config)
    >>> lowest.tolist(), stop.tolist()
    ([[5, 15, 2, 1]], [[15, 25, 3, 2]])
    >>> draw_schedule(torch.tensor([[0, 7, 17, 3]]), config, torch.tensor([[-1, 17]]))[0].tolist()
    [[5, 17, 2, 1]]

    Args:
        prompt_ids: (batch, token): checked prompts.
        config: The token layout.
        forced_ids: (batch, clean token): ids that must come, -1 where the model is free.

    Returns:
        (batch, new token) twice: the lowest legal id, and the first id above the legal ones. The last column is the
        `pad` that every row ends in.
    """
    noisy, begun = count_tokens(prompt_ids, config)
    clean = torch.arange(int((noisy - begun).max()) + 2, device=prompt_ids.device) + begun[:, None]
    lowest = _lowest_ids(prompt_ids, clean, config)
    only = torch.full_like(clean, -1)
    if forced_ids is not None:
        only = forced_ids.gather(1, clean.clamp(max=forced_ids.shape[1] - 1))
    only = only.masked_fill(clean == noisy[:, None], config.eos_token_id)
    only = only.masked_fill(clean > noisy[:, None], config.pad_token_id)
    return torch.where(only < 0, lowest, only), torch.where(only < 0, lowest + config.codebook_size, only + 1)


class FrameGridLogitsProcessor(LogitsProcessor):
    """Leaves each row only the ids its schedule allows at its next token; if none of them is left, all are equal.

    Args:
        schedule: Of `draw_schedule`, each (row, new token).
        prompt_length: Tokens of the prompt, padding included.
    """

    supports_continuous_batching = False  # there NextCodebookLogitsProcessor takes its place

    def __init__(self, schedule: Schedule, prompt_length: int):
        self.lowest, self.stop = schedule
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token = input_ids.shape[1] - self.prompt_length
        return keep_legal(scores, self.lowest[:, token, None], self.stop[:, token, None])


class NextCodebookLogitsProcessor(LogitsProcessor):
    """The grid where only a row's last id is known: leaves the ids of the codebook that comes after that id's.

    A row's end is left to its limit of new tokens.

    Args:
        config: The token layout.

    Raises:
        ValueError: If the pattern is one in which the last id does not tell which codebook comes next.
    """

    supports_continuous_batching = True

    def __init__(self, config: DacSeConfig):
        if config.pattern != "flattened":
            raise ValueError(
                f"continuous batching needs the flattened pattern, this model has the {config.pattern} one"
            )
        self.codebook_size = config.codebook_size
        followers = config.make_pattern().codebooks(2)[1 : config.num_codebooks + 1]  # of each codebook
        lowest = config.first_code_id + followers.repeat_interleave(config.codebook_size) * config.codebook_size
        special = lowest.new_full((config.first_code_id,), config.first_code_id)
        self.lowest = torch.cat([special, lowest])  # by the last id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        last = input_ids if input_ids.dim() == 1 else input_ids[:, -1]
        lowest = self.lowest.to(last.device)[last.long(), None]
        return keep_legal(scores, lowest, lowest + self.codebook_size)


def keep_legal(scores: torch.FloatTensor, lowest: torch.LongTensor, stop: torch.LongTensor) -> torch.FloatTensor:
    """Scores (row, id) with -inf outside `lowest..stop` (row, 1), and 0 inside where a row has nothing else there.

    >>> scores = torch.tensor([[1.0, 2.0, 3.0], [-torch.inf, -torch.inf, 3.0]])
    >>> keep_legal(scores, torch.tensor([[0], [0]]), torch.tensor([[2], [2]])).tolist()
    [[1.0, 2.0, -inf], [0.0, 0.0, -inf]]
    """
    ids = torch.arange(scores.shape[1], device=scores.device)
    is_legal = (ids >= lowest) & (ids < stop)
    kept = scores.masked_fill(~is_legal, -torch.inf)
    is_lost = kept.isneginf().all(-1, keepdim=True)
    return kept.masked_fill(is_lost & is_legal, 0.0)


class MinimumRiskLogitsProcessor(LogitsProcessor):
    """Scores each code by how little it is expected to be wrong, rather than by how likely it is.

    The best code is then the one nearest to the mean of what the model expects: the choice of least Bayes risk (Kumar
    and Byrne, 2004, aclanthology.org/N04-1022) for the squared error. A model that is not sure says something in
    between, where its likeliest code may be the noise that was there. For greedy decoding alone.

    Args:
        code_vectors: (codebook, code, size): what each code stands for, of `processor.code_vectors`.
        first_code_id: Of the token layout.
    """

    supports_continuous_batching = True

    def __init__(self, code_vectors: torch.FloatTensor, first_code_id: int = 5):
        self.code_vectors, self.first_code_id = code_vectors.float(), first_code_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        vectors = self.code_vectors.to(scores.device)
        num_codes = vectors.shape[0] * vectors.shape[1]
        if scores.shape[1] != self.first_code_id + num_codes:
            raise ValueError(
                f"code_vectors are of {vectors.shape[0]} codebooks of {vectors.shape[1]} codes, but the model has "
                f"{scores.shape[1] - self.first_code_id} codes: give those of its own processor"
            )
        codes = scores[:, self.first_code_id :].unflatten(1, vectors.shape[:2])
        risks = negate_risk(codes.float(), vectors).flatten(1)
        return torch.cat([scores[:, : self.first_code_id], risks.to(scores.dtype)], dim=1)


def negate_risk(scores: torch.FloatTensor, vectors: torch.FloatTensor) -> torch.FloatTensor:
    """Minus half of the squared error that choosing a code is expected to make, but for a term common to all codes.

    Its maximum is the code nearest to the mean of what the scores say.

    >>> scores = torch.tensor([0.4, 0.25, 0.35]).log()  # of a distant code, and two that are near each other
    >>> int(scores.argmax()), int(negate_risk(scores, torch.tensor([[0.0], [0.9], [1.0]])).argmax())
    (0, 1)

    Args:
        scores: (..., code): logits of one codebook.
        vectors: (..., code, size): its code vectors.
    """
    mean = scores.softmax(-1).unsqueeze(-2) @ vectors
    return (mean @ vectors.mT).squeeze(-2) - vectors.square().sum(-1) / 2


class RowDrawLogitsProcessor(LogitsProcessor):
    """Draws an id for each row from a random stream of the row's own: the highest of what it returns is drawn.

    Gumbel noise on the scores makes their maximum a draw from their softmax (Gumbel, 1954). The noise is a hash of the
    row's seed, the token's number and the id, so no row's draws depend on the rows beside it, on the device or on any
    global state.

    Args:
        row_seeds: (row,), any 64-bit integers.
        prompt_length: Tokens of the prompt, padding included.
    """

    supports_continuous_batching = False

    def __init__(self, row_seeds: torch.LongTensor, prompt_length: int):
        self.row_seeds, self.prompt_length = row_seeds, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ids = torch.arange(scores.shape[1], device=scores.device)
        return scores + gumbel_noise(self.row_seeds[:, None], input_ids.shape[1] - self.prompt_length, ids)


def gumbel_noise(seeds: torch.LongTensor, token: int | torch.LongTensor, ids: torch.LongTensor) -> torch.FloatTensor:
    """Gumbel noise for each seed (row, 1) and id, at one token of a row: SplitMix64 (Steele, Lea and Flood, 2014).

    >>> noise = gumbel_noise(torch.tensor([[1], [2]]), 0, torch.arange(100_000))
    >>> [round(float(value), 2) for value in (*noise.mean(1), *noise.std(1))]  # 0.577 and pi / sqrt(6)
    [0.58, 0.58, 1.28, 1.28]
    """
    mixed = seeds + (token * 2**32 + ids + 1) * -0x61C8864680B583EB  # 64-bit constants as torch's signed integers
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ _shift(mixed, shift)) * factor
    uniform = (_shift(mixed ^ _shift(mixed, 31), 40).float() + 0.5) * 2.0**-24
    return -(-uniform.log()).log()


def _shift(values: torch.LongTensor, bits: int) -> torch.LongTensor:
    """64-bit values shifted right with zeros coming in, where torch would repeat the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _lowest_ids(prompt_ids: torch.LongTensor, clean: torch.LongTensor, config: DacSeConfig) -> torch.LongTensor:
    """The lowest id of the codebook of each clean token (row, token): that of the noisy token at its place."""
    is_clean = (prompt_ids == config.start_clean_token_id).cumsum(-1) > 0
    first_noisy = ((prompt_ids >= config.first_code_id) & ~is_clean).int().argmax(-1, keepdim=True)
    twin = prompt_ids.gather(1, (first_noisy + clean).clamp(max=prompt_ids.shape[1] - 1)) - config.first_code_id
    return config.first_code_id + twin.div(config.codebook_size, rounding_mode="floor") * config.codebook_size


def _expected_codebooks(
    prompt_ids: torch.LongTensor, noisy: torch.LongTensor, config: DacSeConfig
) -> torch.LongTensor:
    """The codebook of each token of a prompt (row, token), -1 for what is no code."""
    pattern = config.make_pattern()
    start = (prompt_ids == config.start_clean_token_id).int().argmax(-1)
    columns = torch.arange(prompt_ids.shape[1], device=prompt_ids.device)
    expected = torch.full_like(prompt_ids, -1)
    for count in noisy.unique().tolist():  # rows of equal length have one order
        order = pattern.codebooks(count // config.num_codebooks).to(prompt_ids.device)
        offset = columns - start[:, None]
        place = torch.where(offset > 0, offset - 1, offset + count)
        is_code = (noisy == count)[:, None] & (offset != 0) & (place >= 0) & (place < count)
        expected = torch.where(is_code, order[place.clamp(0, count - 1)], expected)
    return expected


def _first(found: torch.BoolTensor) -> tuple[int, ...] | None:
    """Indices of the first True, or None."""
    places = found.nonzero()
    return tuple(places[0].tolist()) if len(places) else None
