"""The engine: recordings in, enhanced audio out, in one loop that everything else stands on.

    audio -> encode -> codes -> windows -> prompts -> generate -> clean codes -> decode -> audio

Cuts recordings into windows, fills batches with them across channels and recordings, has the model answer a batch, and
hands each recording's pieces on as they are done. Knows no token layout, codec or file format.
"""

import logging
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin

from .adapters_dacse import Adapters
from .call_dacse import Call, EnhancedRecording
from .candidates_dacse import best_candidate, scorer_of
from .layout_dacse import check_layout, check_model
from .options_dacse import EnhanceOptions, Own
from .recording_dacse import EnhancedWindow, Piece, Window, window_lengths

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
    ) -> Iterator[EnhancedRecording]:
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
        return Call(self, recordings, options, self.check(options), places).run()

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
        if options.adapter is not Own.ADAPTERS or options.untried:
            with self._alone(options.adapter):  # it is there, and fits
                self._try_arguments(options.untried)
        scorer_of(options.choose)  # it is there
        arguments: dict[str, Any] = dict(options.generate) | ({"do_sample": True} if options.candidates > 1 else {})
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
            best, certainty = self._choose(window, candidates, options)
            confidence = certainty.mean(1).where(window.free, 1.0) if options.return_confidence else None
            rows[index] = EnhancedWindow(window, self._read_codes(window, best), confidence)
        return rows

    def _try_arguments(self, arguments: dict[str, Any]) -> None:
        """Has `generate` refuse arguments on a prompt of one frame, rather than after audio has been read."""
        codes = torch.zeros(1, self.processor.num_codebooks, 1, dtype=torch.long)
        prompt = self.processor.build_prompt(codes).to(self.model.device)
        for name, value in arguments.items():
            try:
                self.model.generate(
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, **{name: value}
                )
            except Exception as error:
                raise ValueError(f"{name} is {value!r}, which generate does not take: {error}") from error

    @contextmanager
    def _alone(self, adapter: Any) -> Generator[None]:
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

    def _choose(
        self, window: Window, candidates: list[torch.LongTensor], options: EnhanceOptions
    ) -> tuple[torch.LongTensor, torch.FloatTensor | None]:
        """The generated row that is kept, and the probabilities of its tokens if they were of use."""
        score, chooses = scorer_of(options.choose), len(candidates) > 1
        if chooses and score is not None:
            codes = torch.stack([self._read_codes(window, row) for row in candidates])
            scores = score(self.processor.decode_codes(codes), self.processor.sampling_rate)
            candidates, chooses = [candidates[best_candidate(scores, len(candidates))]], False
        if not (chooses or options.return_confidence):
            return candidates[0], None
        certainties = [self._certainty(window, row, options.adapter) for row in candidates]
        if not chooses:
            return candidates[0], certainties[0]
        scores = [float(certainty[window.free].log().nanmean()) for certainty in certainties]
        best = best_candidate(scores, len(candidates))
        return candidates[best], certainties[best]

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
