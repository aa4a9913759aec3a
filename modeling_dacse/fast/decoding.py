"""A decoding loop that does only what the codebook grid asks for. Knows ids and a Llama's layers: no audio or file.

Asked for by name: `model.generate(..., custom_generate=decode_grid)`. `generate` prepares everything as for any model
and then calls it. Against the library's loop this one computes the logits of the codebook that is due and of no other,
writes keys and values into buffers of their final size, feeds forced ids together with the id before them, and drops
rows that are done. On a GPU, which would wait for the CPU most of the time, all kernels of a frame are captured once
in a CUDA graph, and then replayed frame after frame.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList, logits_process
from transformers.generation import stopping_criteria as criteria

from modeling_dacse.grid_dacse import (
    FrameGridLogitsProcessor,
    MinimumRiskLogitsProcessor,
    RowDrawLogitsProcessor,
    count_tokens,
)

from .choice import Choice
from .layers import PART, CachedLayers, is_plain_linear, multiply

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
STOPS = (criteria.MaxLengthCriteria, criteria.EosTokenCriteria)
UNKNOWN = -1
TOKENS_TOGETHER = 1024  # that a CPU runs at once
CAPTURED_FRAMES = 16  # at least for a graph to be worth its capture, which takes as long as a frame without it


def decode_grid(
    model: nn.Module,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.LongTensor:
    """Greedy decoding and sampling from prompts padded as by the processor, in the model's own dtype.

    Args:
        model: A `DacSeForEnhancement` for inference; its own layers are called, adapters and all.
        input_ids: (row, token): prompts, checked and expanded by `generate`.
        logits_processor: The grid; before it at most the minimum risk, after it only `WARPERS` and draws of rows.
        stopping_criteria: Only of length and of `eos`.
        generation_config: Of the call.
        model_kwargs: As `generate` prepares them.

    Returns:
        (row, token): prompts and new ids.

    Raises:
        ValueError: If something is asked for that only the library's loop does.
    """
    grid, risk, warpers, draw = _sort_processors(logits_processor)
    _refuse_what_is_not_done_here(model, input_ids, stopping_criteria, generation_config, model_kwargs)
    choice = Choice(
        vectors=None if risk is None else risk.code_vectors.to(model.device),
        warpers=warpers,
        row_seeds=None if draw is None else draw.row_seeds[:, None],
        do_sample=generation_config.do_sample,
    )
    with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
        return GridDecoder(
            model,
            input_ids,
            (grid.lowest, grid.stop),
            choice,
            generation_config.max_length - input_ids.shape[1],
            generation_config.num_return_sequences or 1,
        ).run()


def _sort_processors(processors: LogitsProcessorList):
    """The grid, the minimum risk or None, the warpers, and the draws of rows or None."""
    kinds = [type(processor) for processor in processors]
    place = kinds.index(FrameGridLogitsProcessor)
    before, after = processors[:place], processors[place + 1 :]
    draw = after.pop() if kinds[-1] is RowDrawLogitsProcessor else None
    others = [p for p in before if type(p) is not MinimumRiskLogitsProcessor] + before[1:]
    others += [p for p in after if type(p) not in WARPERS]
    if others:
        raise ValueError(
            f"the fast decoder does not know {type(others[0]).__name__}: leave custom_generate out, and the library's"
            " loop applies it"
        )
    return processors[place], (before or [None])[0], list(after), draw


def _refuse_what_is_not_done_here(model, input_ids, stops, generation_config, model_kwargs) -> None:
    mask, is_real = model_kwargs.get("attention_mask"), input_ids != model.config.pad_token_id
    reasons = {
        f"the {model.config.pattern} pattern": model.config.pattern != "flattened",
        "beams": generation_config.num_beams > 1,
        "returned scores": generation_config.return_dict_in_generate,
        "other stopping criteria": any(type(stop) not in STOPS for stop in stops),
        "a cache of the caller's": getattr(model_kwargs.get("past_key_values"), "_is_user_defined", False),
        "a mask that hides more than padding": mask is not None and not bool((is_real == mask).all()),
        "training": model.training,
        "rotations that follow the length": model.config.rope_parameters["rope_type"] in ("dynamic", "longrope"),
        "a model on several devices": len(set(getattr(model, "hf_device_map", {"": 0}).values())) > 1,
    }
    if found := [reason for reason, is_asked in reasons.items() if is_asked]:
        raise ValueError(
            f"the fast decoder does not do {found[0]}: leave custom_generate out, the library's loop does"
        )


@functools.cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device for captures: the libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream(device)


class FrameGraph:
    """Decodes frames by a CUDA graph. Of the numbers of columns looked at it knows the latest, which never come back.

    The first frame of each number is decoded without, as the warm-up that a capture needs; a capture runs nothing.

    Args:
        device: A CUDA device.
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

    Args:
        model: A `DacSeForEnhancement`.
        input_ids: (row, token): checked prompts, left-padded.
        schedule: Of `draw_schedule`, each (row, new token).
        choice: Picks the ids.
        max_new_tokens: After which every row ends, if it has not ended before.
        answers: So many rows at a time are answers to one prompt, which is run once.
    """

    def __init__(self, model, input_ids, schedule, choice: Choice, max_new_tokens: int, answers: int = 1):
        config, (lowest, stop) = model.config, schedule
        self.model, self.config, self.choice, self.input_ids = model, config, choice, input_ids
        self.answers = answers
        _, begun = count_tokens(input_ids, config)
        self.new_tokens = min(lowest.shape[1] - 1, max_new_tokens)
        only = torch.where(stop - lowest == 1, lowest, UNKNOWN)[:, : self.new_tokens]
        ids = torch.cat([input_ids, only, only.new_full((len(only), int(begun.max())), config.pad_token_id)], dim=1)
        # Rolled to the right by what is begun; then the columns on the left that are padding in every row are dropped.
        ids = ids.gather(1, (torch.arange(ids.shape[1], device=ids.device) - begun[:, None]).remainder(ids.shape[1]))
        padding = int((ids != config.pad_token_id).int().argmax(1).min())
        self.ids, self.begun, self.prompt_length = ids[:, padding:], begun[:, None], input_ids.shape[1] - padding
        self.codebooks = config.make_pattern().codebooks(config.max_frames).tolist()
        self.graph = FrameGraph(ids.device) if self._can_capture() else None
        if self.graph:
            # To the end of the last frame, which `max_new_tokens` may cut, and of the last part.
            room = config.num_codebooks + -(self.ids.shape[1] + config.num_codebooks) % PART
            self.ids = nn.functional.pad(self.ids, (0, room), value=config.pad_token_id)
            self.before = ids.new_zeros(1)  # the column before the frame that is decoded
        columns = torch.arange(self.ids.shape[1], device=ids.device)
        is_real = (self.ids != config.pad_token_id) | (columns >= self.prompt_length)
        self.is_real = None if bool(is_real.all()) else is_real
        self.positions = (is_real.cumsum(-1) - 1).clamp(min=0)
        self.layers = CachedLayers(model.model, *self.ids.shape)

    def run(self) -> torch.LongTensor:
        """Decodes everything: prompts and new ids, (row, token)."""
        if self.graph:
            self._run_frames()
        else:
            self._run_columns()
        new = self.prompt_length + torch.arange(self.new_tokens, device=self.ids.device)
        return torch.cat([self.input_ids, self.ids.gather(1, new + self.begun)], dim=1)

    def _can_capture(self) -> bool:
        """Whether so many new tokens are worth a CUDA graph, and their frames can be captured in one."""
        return (
            self.model.device.type == "cuda"
            and self.new_tokens >= CAPTURED_FRAMES * self.config.num_codebooks
            and all(type(warper) in CAPTURED_WARPERS for warper in self.choice.warpers)
            and not getattr(self.model, "is_quantized", False)
        )

    def _run_columns(self) -> None:
        """Decodes one column after the other, in all rows at once.

        Rows that have all their ids are no longer run, but for those between others that have not.
        """
        is_unknown, fed = self.ids == UNKNOWN, 0
        last_unknown = (is_unknown * torch.arange(self.ids.shape[1], device=self.ids.device)).amax(1).tolist()
        for column in is_unknown.any(0).nonzero()[:, 0].tolist():
            unfinished = [row for row, last in enumerate(last_unknown) if last >= column]
            rows = slice(unfinished[0], unfinished[-1] + 1)
            hidden = self._feed_parts(rows, slice(fed, column)) if fed else self._begin(rows, column)
            codebook = self.codebooks[column - self.prompt_length]
            self._write(rows, column, self._pick(hidden, codebook, rows, column))
            fed = column

    def _run_frames(self) -> None:
        """Does the same frame by frame, each in the same kernels: those of columns that are known are wasted."""
        num_codebooks, fed = self.config.num_codebooks, 0
        unknown = (self.ids == UNKNOWN).any(0).nonzero()[:, 0] - self.prompt_length
        for frame in unknown.div(num_codebooks, rounding_mode="floor").unique().tolist():
            before = self.prompt_length + frame * num_codebooks - 1
            if fed == 0:
                self._begin(slice(0, len(self.ids)), before)
            elif fed < before:
                self._feed(slice(None), slice(fed, before))
            fed = before + num_codebooks
            self.before.fill_(before)
            self.graph.run(self._decode_frame, self.layers.reach(fed))

    def _decode_frame(self, stop: int) -> None:
        """Decodes the frame after the column `before`, looking at `stop` columns, without waiting for the device."""
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
            picked = self._pick(hidden, codebook, slice(None), own + 1)
            known = self.ids.index_select(1, own + 1)
            self.ids.index_copy_(1, own + 1, torch.where(known == UNKNOWN, picked[:, None], known))

    def _pick(self, hidden: torch.Tensor, codebook: int, rows: slice, column: int | torch.LongTensor):
        """Ids (row,) for a column, from the hidden states (row, hidden) of the one before."""
        first = self.config.first_code_id + codebook * self.config.codebook_size
        tokens = column - self.prompt_length - self.begun[rows]
        return first + self.choice.pick(self._score(hidden, first), codebook, rows, tokens, first)

    def _score(self, hidden: torch.Tensor, first: int) -> torch.Tensor:
        """Logits (row, code) of the codebook whose first id is `first`."""
        head, hidden = self.model.lm_head, self.model.model.norm(hidden)
        codes = slice(first, first + self.config.codebook_size)
        if is_plain_linear(head):
            return multiply(hidden, head.weight[codes])
        return head(hidden)[:, codes]

    def _write(self, rows: slice, column: int, picked: torch.LongTensor) -> None:
        known = self.ids[rows, column]
        self.ids[rows, column] = torch.where(known == UNKNOWN, picked, known)

    def _split(self, rows: slice, num_tokens: int) -> list[slice]:
        """Rows to run together: on a CPU a long prompt alone, so that what is between its layers fits the cache."""
        together = max(1, TOKENS_TOGETHER // num_tokens) if self.ids.device.type == "cpu" else rows.stop - rows.start
        together *= rows.step or 1
        return [
            slice(first, min(first + together, rows.stop), rows.step)
            for first in range(rows.start, rows.stop, together)
        ]

    def _begin(self, rows: slice, stop: int) -> torch.Tensor:
        """Runs the columns before `stop`, the first where an id is chosen, once for all answers to a prompt.

        Returns:
            Hidden states of each row's last, (row, hidden).
        """
        hidden = self._feed_parts(slice(rows.start, rows.stop, self.answers), slice(0, stop))
        self.layers.share(rows, stop, self.answers)
        return hidden.repeat_interleave(self.answers, dim=0)

    def _feed_parts(self, rows: slice, columns: slice) -> torch.Tensor:
        """`_feed`, with so many rows at a time as are to be run together: (row, hidden)."""
        parts = self._split(rows, columns.stop - columns.start)
        return torch.cat([self._feed(part, columns)[:, -1] for part in parts])

    def _feed(self, rows: slice, columns: slice) -> torch.Tensor:
        """Runs the layers on some columns of some rows; hidden states of each row's last, (row, 1, hidden)."""
        place = rows, columns
        return self.layers.feed(self.ids[place], self.positions[place], place, self._mask(rows, columns))

    def _mask(self, rows: slice, columns: slice) -> torch.BoolTensor | None:
        """Which columns each token sees, (row, 1, token, column): real ones up to its own. None for all up to it."""
        if self.is_real is None and (columns.start == 0 or columns.stop == columns.start + 1):
            return None
        seen = torch.arange(columns.stop, device=self.ids.device)
        own = seen[columns, None]
        if self.is_real is None:
            return (seen <= own)[None, None]
        return ((seen <= own) & self.is_real[rows, None, None, : columns.stop]) | (seen == own)
