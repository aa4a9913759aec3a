"""The engine: recordings in, enhanced audio out, in one loop that everything else stands on.

    audio -> encode -> codes -> windows -> prompts -> generate -> clean codes -> decode -> audio

Cuts recordings into windows, fills batches with them across channels and recordings, has the model answer a batch, and
hands each recording's pieces on as they are done. Knows no token layout, codec or file format.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin

from .adapters_dacse import Adapters
from .candidates_dacse import best_candidate, scorer_of
from .layout_dacse import check_layout, check_model
from .options_dacse import EnhanceOptions, Own
from .recording_dacse import EnhancedWindow, Piece, Recording, Window, window_lengths

logger = logging.getLogger(__name__)

MOST_WINDOWS = 64  # of a batch: more share the reading of the weights without gain
CACHE_BYTES = 2**29  # of keys and values on a CPU
# What the fast decoder does as the library's loop does it.
FAST_ARGUMENTS = {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
DEFAULTS = EnhanceOptions()
LAYOUT_SETTINGS = {"bos_token_id", "pad_token_id", "eos_token_id", "transformers_version", "use_cache"}


class Enhancer:
    """Enhances recordings with one model, for any number of threads at a time.

    A call's adapter, seed and options are its own: what comes out is what the call gives alone. One batch runs at a
    time; reading, encoding and decoding of other calls go on beside it.

    Args:
        model: A `DacSeForEnhancement`, or a `PeftModel` of one. It is run for inference, whatever mode it is left in.
        processor: Its processor.

    Raises:
        ValueError: If the model is none of ours, or the two speak different token layouts.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.processor = processor
        check_model(self.model)
        check_layout(self.model, processor)
        self.adapters = Adapters(self.model)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    def stream_many(
        self, recordings: Iterable[Any], options: EnhanceOptions = DEFAULTS, places: Iterable[int] | None = None
    ) -> Iterator["EnhancedRecording"]:
        """Enhances many recordings, whose windows share batches.

        Args:
            recordings: Each of any kind the processor reads; read as far ahead as a batch goes.
            options: Of all of them.
            places: A number of each recording, from which its random stream is made: where many calls share the work
                of one, the recording's place in all of it. By default its place in this call.

        Yields:
            Each recording in order, to be consumed before the next; one that is not consumed to its end costs no
            further batch.

        Raises:
            ValueError: If an option does not suit the model; before any audio is read. What is wrong with a recording
                is raised by its own pieces, and the others go on.
        """
        return _Call(self, recordings, options, self.check(options), places).run()

    def stream(self, recording: Any, options: EnhanceOptions = DEFAULTS) -> Iterator[Piece]:
        """Enhances one recording of any length in constant memory; yields its pieces.

        Raises:
            ValueError: If the recording cannot be read, or an option does not suit.
            OSError: If it cannot be opened.
        """
        for enhanced in self.stream_many([recording], options):
            yield from enhanced

    def check(self, options: EnhanceOptions) -> dict[str, Any]:
        """What `generate` is to be given for a call.

        Raises:
            ValueError: If an option does not suit this model.
        """
        window_lengths(self.processor, options, self.model.config.max_frames)
        if options.adapter is not Own.ADAPTERS:
            with self._lock, self.adapters.using(options.adapter):
                pass  # it is there, and fits
        scorer_of(options.choose)  # it is there
        arguments = dict(options.generate) | ({"do_sample": True} if options.candidates > 1 else {})
        own = self.model.generation_config
        beams = arguments.get("num_beams", getattr(arguments.get("generation_config", own), "num_beams", 1)) or 1
        is_greedy = not options.draws and beams == 1
        if options.minimum_risk and not is_greedy:
            raise ValueError("minimum_risk is for greedy decoding: leave it out, or do_sample and num_beams")
        if is_greedy and (self.processor.minimum_risk if options.minimum_risk is None else options.minimum_risk):
            risk = self.model.risk_processor(self.processor.code_vectors)
            arguments["logits_processor"] = [*arguments.get("logits_processor", ()), risk]
        settings = {name for name, value in own.to_diff_dict().items() if value and name[0] != "_"} - LAYOUT_SETTINGS
        settings |= options.generate.keys()
        if settings <= FAST_ARGUMENTS and (decoder := self.model.fast_decoder) is not None:
            arguments["custom_generate"] = decoder
        return arguments

    def default_batch_size(self) -> int:
        """Rows to answer together when nobody says how many: one for each window, or for each of its candidates.

        More of them share each reading of the weights, until their keys and values are what is mostly read: no more
        than half a gigabyte of those on a CPU, half of the free memory on a GPU, and 64 windows on either.
        """
        config = self.model.config
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * self.model.dtype.itemsize
        is_gpu = self.model.device.type == "cuda"
        memory = torch.cuda.mem_get_info(self.model.device)[0] // 2 if is_gpu else CACHE_BYTES
        return max(1, min(MOST_WINDOWS, memory // (token * config.max_position_embeddings)))

    def default_windows(self, options: EnhanceOptions) -> int:
        """Windows to enhance together when a call does not say."""
        return max(1, self.default_batch_size() // options.candidates)

    def answer(
        self, windows: list[Window], seeds: list[list[int]] | None, options: EnhanceOptions, arguments: dict[str, Any]
    ) -> list[EnhancedWindow]:
        """Has the model answer a batch of windows.

        Args:
            windows: Of any recordings; those the model is not to be asked about come back as they are.
            seeds: Where ids are drawn, one for each candidate of each window.
            options: Of the call.
            arguments: Of `generate`, from `check`.
        """
        rows = [EnhancedWindow(window, window.codes, torch.ones(window.codes.shape[1])) for window in windows]
        asked = [index for index, window in enumerate(windows) if window.is_generated]
        if not asked:
            return rows
        prompts = [self.processor.build_prompt(windows[index].codes[None])[0] for index in asked]
        forced = self._forced_ids([windows[index] for index in asked], prompts)
        if forced is not None:
            arguments = arguments | {"forced_ids": forced.to(self.model.device)}
        drawn = None if seeds is None else torch.tensor([seeds[index] for index in asked], device=self.model.device)
        with self._alone(options.adapter):
            answers = self._generate(prompts, drawn, arguments)
        for index, candidates in zip(asked, answers, strict=True):
            window = windows[index]
            best = candidates[self._best(window, candidates, options)]
            confidence = None
            if options.return_confidence:
                confidence = self._certainty(window, best, options.adapter).mean(1).where(window.free, 1.0)
            rows[index] = EnhancedWindow(window, self._read_codes(window, best), confidence)
        return rows

    @contextmanager
    def _alone(self, adapter: Any) -> Iterator[None]:
        """With the model to itself and a call's adapter, without gradients, dropout or autocast that may be on."""
        with self._lock:
            was_training, device = self.model.training, self.model.device
            if was_training:
                self.model.eval()
            here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
            try:
                with torch.no_grad(), torch.autocast(device.type, enabled=False), here, self.adapters.using(adapter):
                    yield
            finally:
                if was_training:
                    self.model.train()

    def _generate(
        self, prompts: list[torch.LongTensor], seeds: torch.LongTensor | None, arguments: dict[str, Any]
    ) -> list[list[torch.LongTensor]]:
        """Generated rows of each prompt, one for each seed of `seeds` (prompt, candidate); as many at once as fit."""
        pad = self.processor.pad_token_id
        input_ids = pad_sequence(prompts, True, pad, "left").to(self.model.device)
        arguments = arguments | {"input_ids": input_ids, "attention_mask": (input_ids != pad).long()}
        if seeds is None:
            return [[row] for row in self.model.generate(**arguments)]
        candidates = []  # each of all prompts
        for part in seeds.split(max(1, self.default_batch_size() // len(prompts)), dim=1):
            rows = self.model.generate(**arguments, row_seeds=part.flatten(), num_return_sequences=part.shape[1])
            candidates += rows.unflatten(0, part.shape).transpose(0, 1)
        return [list(rows) for rows in zip(*candidates, strict=True)]

    def _best(self, window: Window, candidates: list[torch.LongTensor], options: EnhanceOptions) -> int:
        """Which of some generated rows is kept."""
        if len(candidates) == 1:
            return 0
        if (score := scorer_of(options.choose)) is None:
            certainties = (self._certainty(window, row, options.adapter)[window.free] for row in candidates)
            scores = [float(certainty.log().nanmean()) for certainty in certainties]
        else:
            codes = torch.stack([self._read_codes(window, row) for row in candidates])
            scores = score(self.processor.decode_codes(codes), self.processor.sampling_rate)
        return best_candidate(scores, len(candidates))

    def _forced_ids(self, windows: list[Window], prompts: list[torch.LongTensor]) -> torch.LongTensor | None:
        """The noisy ids that must come where the model has no choice, -1 elsewhere, (row, token)."""
        if all(bool(window.free.all()) for window in windows):
            return None
        rows = [
            prompt[1:-1].masked_fill(window.free.repeat_interleave(len(window.codes)), -1)
            for window, prompt in zip(windows, prompts, strict=True)
        ]
        return pad_sequence(rows, batch_first=True, padding_value=-1)

    def _read_codes(self, window: Window, row: torch.LongTensor) -> torch.LongTensor:
        """The codes of a generated row; frames that a stopping criterion left out stay as they were."""
        codes = self.processor.clean_codes(row)[0].cpu()
        missing = window.codes.shape[1] - codes.shape[1]
        if missing:
            logger.warning("a window was stopped %d frames before its end, which stay as they were", missing)
            codes = torch.cat([codes, window.codes[:, codes.shape[1] :]], dim=1)
        return codes

    def _certainty(self, window: Window, row: torch.LongTensor, adapter: Any) -> torch.FloatTensor:
        """The probabilities of a generated row's tokens, (frame, codebook); nan in frames that were left out."""
        with self._alone(adapter):
            probabilities = self.model.token_probabilities(row[None])[0].cpu()
        known = probabilities[~probabilities.isnan()].split(len(window.codes))
        whole = [frame for frame in known if len(frame) == len(window.codes)]
        missing = torch.full((window.codes.shape[1] - len(whole), len(window.codes)), torch.nan)
        return torch.cat([*(frame[None] for frame in whole), missing])


class EnhancedRecording:
    """One recording of a call: iterate over it for its pieces, once.

    Attributes:
        audio: What was given.
        index: Its place, in the call unless the call says otherwise.
        recording: What is known of it, or None if it cannot be opened; iterating then raises why.
    """

    def __init__(self, call: "_Call", audio: Any, index: int):
        self.audio, self.index, self.recording = audio, index, None
        self._call, self._rows = call, deque()
        self._error: Exception | None = None
        self._is_read = self._is_closed = False

    def __iter__(self) -> Iterator[Piece]:
        try:
            rows = self._answered()
            first = next(rows, None)  # raises what is wrong before anything is rendered
            if first is not None:
                yield from self.recording.render(itertools.chain([first], rows))
        finally:
            self.close()

    def read(self, enhancer: Enhancer, options: EnhanceOptions) -> Iterator[Window | None]:
        """Yields None once it is open or cannot be, then its windows as long as somebody wants them.

        Whatever its source raises becomes its own error.
        """
        try:
            self.recording = Recording(enhancer.processor, self.audio, options, enhancer.model.config.max_frames)
        except Exception as error:
            self._error = error
        yield None
        try:
            for window in self.recording.windows() if self._error is None else ():
                yield window
                if self._is_closed:
                    break
        except Exception as error:
            self._error = error
        self._is_read = True

    def wants(self) -> bool:
        """Whether answers still have a use."""
        return self._error is None and not self._is_closed

    def add(self, row: EnhancedWindow) -> None:
        """Takes an answered window, in order."""
        self._rows.append(row)

    def fail(self, error: Exception) -> None:
        """Ends it with an error, after what has been answered."""
        self._error = error

    def close(self) -> None:
        """Says that no more pieces are wanted."""
        self._is_closed = True
        self._rows.clear()

    def _answered(self) -> Iterator[EnhancedWindow]:
        while True:
            while self._rows:
                yield self._rows.popleft()
            if self._error is not None:
                raise self._error
            if self._call.holds_windows_of(self):
                self._call.run_batch()
            elif self._is_read:
                return
            else:
                self._call.read_on()


class _Call:
    """The state of one call: recordings being read, windows that wait for a batch."""

    def __init__(
        self,
        enhancer: Enhancer,
        recordings: Iterable[Any],
        options: EnhanceOptions,
        arguments: dict[str, Any],
        places: Iterable[int] | None,
    ):
        self.enhancer, self.options, self.arguments = enhancer, options, arguments
        self.batch_size = 1 if options.is_assisted else options.batch_size or enhancer.default_windows(options)
        self.seed = np.random.SeedSequence().entropy if options.seed is None else options.seed % 2**64
        self.windows = self._read(recordings, itertools.count() if places is None else places)
        self.waiting: deque[tuple[EnhancedRecording, Window]] = deque()
        self.opened: deque[EnhancedRecording] = deque()  # and not handed out yet

    def run(self) -> Iterator[EnhancedRecording]:
        while self.opened or self.read_on():
            if self.opened:
                recording = self.opened.popleft()
                yield recording
                recording.close()

    def run_batch(self) -> None:
        """Has a full batch answered, or what is left of the recordings."""
        while len(self.waiting) < self.batch_size and self.read_on():
            pass
        batch = [self.waiting.popleft() for _ in range(min(self.batch_size, len(self.waiting)))]
        batch = [(recording, window) for recording, window in batch if recording.wants()]
        seeds = [self._seeds(recording, window) for recording, window in batch] if self.options.draws else None
        try:
            rows = self.enhancer.answer([window for _, window in batch], seeds, self.options, self.arguments)
        except Exception as error:  # of this batch: each of its recordings raises it, the others go on
            for recording, _ in batch:
                recording.fail(error)
            return
        for (recording, window), row in zip(batch, rows, strict=True):
            recording.add(row)
            if self.options.progress is not None:
                self.options.progress(window.span.last, recording.recording.expect_frames())

    def holds_windows_of(self, recording: EnhancedRecording) -> bool:
        """Whether windows of it wait for their batch."""
        return any(owner is recording for owner, _ in self.waiting)

    def read_on(self) -> bool:
        """Opens a recording, cuts a window of it or ends it; False if there is nothing left."""
        found = next(self.windows, None)
        if found is not None and found[1] is not None:
            self.waiting.append(found)
        return found is not None

    def _read(
        self, recordings: Iterable[Any], places: Iterable[int]
    ) -> Iterator[tuple[EnhancedRecording, Window | None]]:
        for audio, index in zip(recordings, places, strict=False):
            recording = EnhancedRecording(self, audio, index)
            windows = recording.read(self.enhancer, self.options)
            next(windows)
            self.opened.append(recording)
            yield recording, None
            for window in windows:
                yield recording, window
            yield recording, None

    def _seeds(self, recording: EnhancedRecording, window: Window) -> list[int]:
        """Of the random streams of a window's candidates, as signed numbers of 64 bits; the first needs no others."""
        place = (self.seed, recording.index, window.channel, window.index)
        places = [place, *((*place, candidate) for candidate in range(1, self.options.candidates))]
        states = (np.random.SeedSequence(entropy=place).generate_state(1, np.uint64) for place in places)
        return [int(state[0].astype(np.int64)) for state in states]
