"""A decoding loop that does only what the codebook grid asks for. Knows ids and a Llama's layers: no audio or file.

`generate` prepares everything as for any model and comes here where it can ([`can_decode`]). Against the stock loop
this one computes the logits of the codebook that is due and of no other, writes keys and values into buffers of their
final size, and feeds forced ids together with the id before them. Where clean ids have come out as the noisy ones, it
goes on from the noisy ones until the model disagrees: speculative decoding (Leviathan et al., arXiv 2211.17192) from a
draft that costs nothing. A drafted id is kept only if it is the one the model itself picks, so neither the greedy ids
nor the distribution of sampled ones depend on the draft. On a GPU, which would wait for the CPU most of the time, all
kernels of a frame are captured once in a CUDA graph, and then replayed frame after frame.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from transformers import DynamicCache
from transformers.generation import logits_process, stopping_criteria

from .layers_dacse import PART, CachedLayers, multiply

# What works on the scores of one codebook as on the whole vocabulary with all others at -inf.
WARPERS = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.LogitNormalization,
)
# Those of them that are known not to wait for the device.
CAPTURED_WARPERS = WARPERS[:3]
STOPS = (stopping_criteria.MaxLengthCriteria, stopping_criteria.EosTokenCriteria)
MODEL_ARGUMENTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
UNKNOWN = -1
TOKENS_TOGETHER = 1024  # that a CPU runs at once
CAPTURED_FRAMES = 16  # at least for a graph to be worth its capture, which takes as long as a frame without it
DRAFT_FRAMES = 4  # at most at a time; longer drafts hardly save passes
DRAFT_SHARE = 0.8  # of a frame's ids that are the noisy ones, in every row, for drafts to begin
GROW_SHARE, SHRINK_SHARE = 0.75, 0.5  # of a pass's tokens that the last row could keep, for drafts to double or halve


def can_decode(model, input_ids, processors, stops, generation_config, model_kwargs) -> bool:
    """Whether the decoder gives what the stock loop would: greedy or sampled, from prompts padded as by the processor.

    The stock loop keeps the rest: returned scores, processors and stops of the user, chosen caches, autocast, models
    in training or spread over devices, attention implementations other than the default.
    """
    cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
    positions, is_real = model_kwargs.get("position_ids"), input_ids != model.config.pad_token_id
    return (
        all(type(processor) in WARPERS for processor in processors[1:])
        and all(type(stop) in STOPS for stop in stops)
        and model_kwargs.keys() <= MODEL_ARGUMENTS
        and type(cache) is DynamicCache
        and not getattr(cache, "_is_user_defined", False)
        and model_kwargs["use_cache"]
        and not generation_config.return_dict_in_generate
        and not generation_config.is_assistant
        and generation_config.prefill_chunk_size is None
        and not model.training
        and not torch.is_autocast_enabled(model.device.type)
        and model.config._attn_implementation == "sdpa"
        and model.config.rope_parameters["rope_type"] not in ("dynamic", "longrope")
        and len(set(getattr(model, "hf_device_map", {"": 0}).values())) == 1
        and bool((is_real if mask is None else is_real == mask).all())
        and (positions is None or bool(((is_real.cumsum(-1) - 1 == positions) | ~is_real).all()))
    )


def can_capture(model, warpers, num_tokens: int) -> bool:
    """Whether so many new tokens are worth a CUDA graph, and their frames can be captured in one."""
    return (
        model.device.type == "cuda"
        and num_tokens >= CAPTURED_FRAMES * model.config.num_codebooks
        and all(type(warper) in CAPTURED_WARPERS for warper in warpers)
        and not getattr(model, "is_quantized", False)
    )


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device for captures: the libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream(device)


def negate_risk(scores: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Minus half of the squared error that choosing a code is expected to make, but for a term common to all codes.

    Its maximum is the code nearest to the mean of what the scores say: the choice of least Bayes risk.

    >>> scores = torch.tensor([0.4, 0.25, 0.35]).log()  # of a distant code, and two that are near each other
    >>> int(scores.argmax()), int(negate_risk(scores, torch.tensor([[0.0], [0.9], [1.0]])).argmax())
    (0, 1)

    Args:
        scores (`torch.Tensor` of shape `(..., code)`): Logits of one codebook.
        vectors (`torch.Tensor` of shape `(..., code, size)`): Its code vectors.
    """
    mean = scores.softmax(-1).unsqueeze(-2) @ vectors
    return (mean @ vectors.mT).squeeze(-2) - vectors.square().sum(-1) / 2


class FrameGraph:
    """Decodes frames by a CUDA graph. Of the numbers of columns looked at it knows the latest, which never come back.

    The first frame of each number is decoded without, as the warm-up that a capture needs; a capture runs nothing.
    """

    def __init__(self, device: torch.device):
        self.device, self.stop, self.graph = device, None, None

    def run(self, decode_frame: Callable[[int], None], stop: int) -> None:
        """Calls `decode_frame(stop)`, or does what it did before, on what is now in the tensors it works on."""
        if stop != self.stop:
            self.stop, self.graph = stop, None
            here, aside = torch.cuda.current_stream(self.device), capture_stream(self.device)
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                decode_frame(stop)
            here.wait_stream(aside)
            return
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device.
            with torch.cuda.graph(graph, stream=capture_stream(self.device), capture_error_mode="thread_local"):
                decode_frame(stop)
            self.graph = graph
        self.graph.replay()


class GridDecoder:
    """Decodes a batch of prompts, each row as far as its schedule goes.

    All rows' clean parts begin at one column, `prompt_length`, begun or not, so that rows that go together are at one
    codebook. `ids` holds `UNKNOWN` where the model is still to choose; what it says at a column decides on the next.
    Columns before `fed` have their keys and values in the caches.

    Args:
        model (`DacSeForEnhancement`): Its own layers are called, adapters and all.
        input_ids (`torch.LongTensor` of shape `(row, token)`): Checked prompts, left-padded.
        schedule (pair of `torch.LongTensor` of shape `(row, new token)`): Of `draw_schedule`.
        counts (pair of `torch.LongTensor` of shape `(row,)`): Of `count_tokens`.
        warpers (`list[LogitsProcessor]`): Applied to the scores of a codebook before an id is drawn.
        do_sample (`bool`): Draw ids, or take the likeliest.
        code_vectors (`torch.FloatTensor` of shape `(codebook, code, size)`, *optional*): Take the code of the least
            expected error instead ([`negate_risk`]).
        max_new_tokens (`int`): After which every row ends, if it has not ended before.
    """

    def __init__(
        self, model, input_ids, schedule, counts, warpers, do_sample: bool, code_vectors, max_new_tokens: int
    ):
        config, self.code_vectors = model.config, code_vectors
        self.model, self.config, self.warpers, self.do_sample = model, config, warpers, do_sample
        (lowest, stop), (noisy, begun) = schedule, counts
        self.new_tokens, longest_begun = min(lowest.shape[1] - 1, max_new_tokens), int(begun.max())
        only = torch.where(stop - lowest == 1, lowest, UNKNOWN)[:, : self.new_tokens]
        room = longest_begun + DRAFT_FRAMES * config.num_codebooks
        ids = torch.cat([input_ids, only, only.new_full((len(only), room), config.pad_token_id)], dim=1)
        # Rolled to the right by what is begun; then the columns on the left that are padding in every row are dropped.
        ids = ids.gather(1, (torch.arange(ids.shape[1], device=ids.device) - begun[:, None]) % ids.shape[1])
        padding = int((ids != config.pad_token_id).int().argmax(1).min())
        self.ids, self.begun, self.prompt_length = ids[:, padding:], begun, input_ids.shape[1] - padding
        self.graph = FrameGraph(ids.device) if can_capture(model, warpers, self.new_tokens) else None
        if self.graph:
            room = -self.ids.shape[1] % PART
            self.ids = nn.functional.pad(self.ids, (0, room), value=config.pad_token_id)
            self.before = ids.new_zeros(1)  # the column before the frame that is decoded
        self.last = self.prompt_length + self.new_tokens + longest_begun - 1
        self.input_ids = input_ids
        columns = torch.arange(self.ids.shape[1], device=ids.device)
        self.is_free = self.ids == UNKNOWN
        self.draft = self.ids.gather(1, (columns - 1 - noisy[:, None]).clamp(min=0))
        is_real = (self.ids != config.pad_token_id) | (columns >= self.prompt_length)
        self.is_real = None if bool(is_real.all()) else is_real
        self.positions = (is_real.cumsum(-1) - 1).clamp(min=0)
        self.layers = CachedLayers(model.model, *self.ids.shape)

    def run(self) -> torch.LongTensor:
        """Decodes everything: prompts and new ids, `(row, token)`."""
        with torch.inference_mode():
            self._decode()
        new = self.prompt_length + torch.arange(self.new_tokens, device=self.ids.device)
        return torch.cat([self.input_ids, self.ids.gather(1, new + self.begun[:, None])], dim=1)

    def _decode(self) -> None:
        fed = 0
        while bool((self.ids == UNKNOWN).any()):
            fed = self._run_frames(fed) if self.graph else self._run_together(fed)
            fed = self._run_apart(fed)

    def _run_together(self, fed: int) -> int:
        """Decodes one column after the other, in all rows at once, until in each a frame comes out as it went in.

        Rows that have all their ids are no longer run, but for those between others that have not.
        """
        num_codebooks, is_unknown = self.config.num_codebooks, self.ids == UNKNOWN
        last_unknown = (is_unknown * torch.arange(self.ids.shape[1], device=self.ids.device)).amax(1).tolist()
        for column in is_unknown.any(0).nonzero()[:, 0].tolist():
            unfinished = [row for row, last in enumerate(last_unknown) if last >= column]
            rows = slice(unfinished[0], unfinished[-1] + 1)
            parts = [
                self._feed((part, slice(fed, column)), column, only_last=True)[:, -1]
                for part in self._split(rows, column - fed)
            ]
            codebook = (column - self.prompt_length) % num_codebooks
            picked = self._first_id(codebook) + self._pick(self._score(torch.cat(parts), codebook), codebook)
            known = self.ids[rows, column]
            self.ids[rows, column] = torch.where(known == UNKNOWN, picked, known)
            fed = column
            if codebook == num_codebooks - 1 and self._agrees((column - self.prompt_length) // num_codebooks):
                break
        return fed

    def _run_frames(self, fed: int) -> int:
        """Does the same frame by frame, each in the same kernels: those of columns that are known are wasted."""
        num_codebooks = self.config.num_codebooks
        unknown = (self.ids == UNKNOWN).any(0).nonzero()[:, 0] - self.prompt_length
        for frame in (unknown // num_codebooks).unique().tolist():
            before = self.prompt_length + frame * num_codebooks - 1
            if fed < before:
                self._feed((slice(None), slice(fed, before)), before, only_last=True)
            fed = before + num_codebooks
            self.before.fill_(before)
            self.graph.run(self._decode_frame, self.layers.reach(fed))
            if self._agrees(frame):
                break
        return fed

    def _decode_frame(self, stop: int) -> None:
        """Decodes the frame behind the column `before`, looking at `stop` columns, without waiting for the device."""
        columns = torch.arange(stop, device=self.ids.device)
        for codebook in range(self.config.num_codebooks):
            own = self.before + codebook
            is_seen = (columns <= own)[None]
            if self.is_real is not None:
                is_seen = is_seen & self.is_real[:, :stop]
            bias = torch.zeros(is_seen.shape, dtype=self.model.dtype, device=own.device)
            bias = bias.masked_fill(~is_seen, -torch.inf)[:, None]
            ids, positions = self.ids.index_select(1, own), self.positions.index_select(1, own)
            hidden = self.layers.step(ids, positions, own, bias)
            picked = self._first_id(codebook) + self._pick(self._score(hidden, codebook), codebook)
            known = self.ids.index_select(1, own + 1)
            self.ids.index_copy_(1, own + 1, torch.where(known == UNKNOWN, picked[:, None], known))

    def _agrees(self, frame: int) -> bool:
        """Whether nearly all free ids of a frame have come out in every row as they went in."""
        first = self.prompt_length + frame * self.config.num_codebooks
        place = slice(None), slice(first, first + self.config.num_codebooks)
        agrees = (self.ids[place] == self.draft[place]) | ~self.is_free[place]
        return float(agrees.float().mean(1).min()) > DRAFT_SHARE

    def _run_apart(self, fed: int) -> int:
        """Decodes from the draft, every row at its own pace, until the last one no longer gains by it."""
        rows = torch.arange(len(self.ids), device=self.ids.device)[:, None]
        fed = self.begun.new_full((len(rows), 1), fed)
        length = self.config.num_codebooks
        while length >= self.config.num_codebooks and bool((self.ids == UNKNOWN).any()):
            columns = fed + torch.arange(length + 1, device=fed.device)
            known = self.ids[rows, columns]
            guess = torch.where(known == UNKNOWN, self.draft[rows, columns], known)
            hidden = self._feed((rows, columns[:, :-1]), int(fed.max()) + length, guess[:, :-1])
            codebooks = (columns[:, 1:] - self.prompt_length) % self.config.num_codebooks
            first = self._first_id(codebooks)
            ids = first[..., None] + torch.arange(self.config.codebook_size, device=fed.device)
            scores = self.model.lm_head(self.model.model.norm(hidden)).gather(2, ids)
            picked = first + self._pick(scores.flatten(0, 1), codebooks.flatten()).view(len(rows), -1)
            picked = torch.where(known[:, 1:] == UNKNOWN, picked, known[:, 1:])
            accepted = (picked == guess[:, 1:])[:, :-1].long().cumprod(1).sum(1, keepdim=True)
            is_certain = torch.arange(length, device=fed.device) <= accepted
            self.ids[rows, columns[:, 1:]] = torch.where(is_certain, picked, known[:, 1:])
            behind, fed = int(fed.min()), (fed + accepted + 1).clamp(max=self.last)
            share = (int(fed.min()) - behind) / length
            if share > GROW_SHARE:
                length = min(2 * length, DRAFT_FRAMES * self.config.num_codebooks)
            elif share < SHRINK_SHARE:
                length //= 2
        return int(fed.min())

    def _split(self, rows: slice, num_tokens: int) -> list[slice]:
        """Rows to run together: on a CPU a long prompt alone, so that what is between its layers fits the cache."""
        together = max(1, TOKENS_TOGETHER // num_tokens) if self.ids.device.type == "cpu" else rows.stop - rows.start
        return [slice(first, min(first + together, rows.stop)) for first in range(rows.start, rows.stop, together)]

    def _first_id(self, codebook):
        """The id of a codebook's first code."""
        return self.config.first_code_id + codebook * self.config.codebook_size

    def _score(self, hidden: torch.Tensor, codebook: int) -> torch.Tensor:
        """Logits of one codebook, `(row, code)`."""
        head, hidden, first = self.model.lm_head, self.model.model.norm(hidden), self._first_id(codebook)
        codes = slice(first, first + self.config.codebook_size)
        if type(head) is nn.Linear:
            return multiply(hidden, head.weight[codes])
        return head(hidden)[:, codes]

    def _pick(self, scores: torch.Tensor, codebook) -> torch.LongTensor:
        """Codes `(row,)` from scores `(row, code)` of one codebook, or of one for each row."""
        scores = scores.float()
        if self.code_vectors is not None:
            scores = negate_risk(scores, self.code_vectors[codebook])
        if not self.do_sample:
            return scores.argmax(-1)
        for warper in self.warpers:
            scores = warper(None, scores)
        shares = scores.softmax(-1)
        # As `torch.multinomial` draws, which waits for the device to check the shares.
        return (shares / torch.empty_like(shares).exponential_()).argmax(-1)

    def _feed(
        self, place: tuple, stop: int, ids: torch.LongTensor | None = None, only_last: bool = False
    ) -> torch.Tensor:
        """Runs the layers on some columns of some rows.

        Args:
            place (`tuple`): Indices of the columns in a tensor `(row, column)`.
            stop (`int`): The column behind the last.
            ids (`torch.LongTensor` of shape `(row, token)`, *optional*): Instead of what stands in these columns.
            only_last (`bool`): As for [`CachedLayers.feed`].

        Returns:
            Hidden states of shape `(row, token, hidden)`, or `(row, 1, hidden)`.
        """
        ids, positions = self.ids[place] if ids is None else ids, self.positions[place]
        return self.layers.feed(ids, positions, place, stop, self._mask(place, stop), only_last)

    def _mask(self, place: tuple, stop: int) -> torch.BoolTensor | None:
        """Which columns each token sees, `(row, 1, token, column)`: real ones up to its own. None for all up to it."""
        rows, own = place
        is_slice = isinstance(own, slice)
        if self.is_real is None and is_slice and (own.start == 0 or own.stop == own.start + 1):
            return None
        columns = torch.arange(stop, device=self.ids.device)
        own = (columns[None, own] if is_slice else own)[:, None, :, None]
        if self.is_real is None:
            return columns <= own
        is_real = self.is_real[rows if is_slice else slice(None), None, None, :stop]
        return (columns <= own) & is_real | (columns == own)
