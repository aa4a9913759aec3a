"""The pipeline for task "audio-enhancement": recordings of any length and kind in, enhanced audio out.

Runs windows through the model in batches. Knows no token layout, codec or file format.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DacModel, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.base import ChunkPipeline, pad_collate_fn

from .companions_dacse import (
    check_device,
    check_dtype,
    check_layout,
    check_model,
    default_batch_size,
    find_processor,
    new_processor,
    use_adapter,
    warn_of_slow_dtype,
)
from .recording_dacse import EnhancedWindow, Recording, Window, cut_recording, open_recording, render_recording
from .windows_dacse import check_regions, overlap_frames, window_frames

logger = logging.getLogger(__name__)
TASK = "audio-enhancement"
PREPROCESS_PARAMETERS = {"sampling_rate", "window_seconds", "overlap_seconds", "regions"}
POSTPROCESS_PARAMETERS = {"strength", "output_sampling_rate", "keep_recording"}
# Of `generate`: every window is answered whole, and once.
REFUSED_PARAMETERS = {"max_length", "max_new_tokens", "num_return_sequences", "return_dict_in_generate"}


class AudioEnhancementPipeline(ChunkPipeline):
    """Noisy speech in, clean speech out.

    A recording is encoded as one piece and cut into windows of codes that overlap; windows of all channels and of all
    waiting recordings fill one batch after another. Neighbouring windows are joined as codes, in the middle of their
    overlap, and decoded as one piece. A joint so made is as smooth as the audio around it; cross-fading windows
    decoded apart gains next to nothing (measured: benchmarks/LOG.md).

    The output has exactly `round(samples * rate_out / rate_in)` samples, the channels of the input in their order, and
    no hidden normalisation of its level. Windows of digital silence (every sample 0) come back as they are: there is
    nothing to enhance, and a generative model that is asked to may invent speech.

    Args:
        model: a `DacSeForEnhancement`.
        processor: its processor; by default the one saved beside the model.
        codec: a `DacModel`, or the directory or Hub id of one, for a model without a processor (the released plain
            Llama repository). By default `descript/dac_44khz`, where it fits.
        kwargs: those of [`Pipeline`], and any parameter of a call as the default of all calls.

    Raises:
        ValueError: model, processor and codec do not belong together, or the device is not one of this machine's.
    """

    _load_processor = None  # may be absent: the released repository has none
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | None = None,
        codec: DacModel | str | os.PathLike | None = None,
        **kwargs,
    ):
        check_model(model)
        check_device(kwargs.get("device"))
        check_dtype(kwargs.get("dtype"))
        if codec is not None:
            processor = new_processor(model, codec)
        elif processor is None:
            processor = find_processor(model)
        check_layout(model, processor)
        if getattr(model, "peft_config", None):  # the repository given is an adapter's
            kwargs.setdefault("adapter", model.active_adapters()[0])
        super().__init__(model=model, processor=processor, **kwargs)
        warn_of_slow_dtype(self.model)
        if self._batch_size is None:
            self._batch_size = default_batch_size(self.model)
            logger.info("%s windows at a time on %s in %s", self._batch_size, self.device, self.model.dtype)
        self.tokenizer = processor  # the library pads batches with a tokenizer's pad_token_id, on its padding_side
        processor.audio_tokenizer.to(self.device)

    def __call__(self, audio: Any, **parameters) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Enhances one recording, a list of them, or a generator or dataset of them, which streams.

        Args:
            audio: a path, URL, bytes, file object, numpy array, torch tensor, `{"array" or "raw", "sampling_rate"}` or
                decoded `datasets` value, or many of them.
            parameters: any of
                - sampling_rate (int): of bare arrays, in Hz;
                - batch_size (int): windows enhanced together, over channels and recordings; by default as many
                  as suit device and model, which is logged as info. A generator is read that far ahead;
                - window_seconds (float): default 4.0, or what the model's context holds if that is less;
                - overlap_seconds (float): between neighbours; default 0.2, at most a quarter of the window;
                - regions (list of (start, stop) in seconds): enhance only there. Outside, the model is held to the
                  noisy tokens and the input's samples come back; linear fades of 10 ms lie just inside the borders;
                - strength (float): from 0, the input, to 1, the enhanced audio, which is the default;
                - output_sampling_rate (int, "input" or None): in Hz; None, the default, is the model's own;
                - keep_recording (bool): the enhanced audio is the recording, each band of its spectrum lowered as the
                  model lowered it, with generated sound only where the recording has none (lost packets, missing
                  bands); False is all that the model generated and nothing else. As the model's configuration says,
                  by default: small models hear noise better than they speak;
                - return_confidence (bool): add "confidence", for each frame the mean probability of its tokens among
                  the codes of their codebooks; 1 where the model had no choice;
                - adapter (str or None): the name of a loaded PEFT adapter or of a folder under the model's
                  `adapters/`, a directory, or a Hub id. Adapters stay loaded and are switched from call to call; None,
                  the default, is the base model;
                - minimum_risk (bool): take the code nearest to what the model expects instead of the likeliest; as the
                  model's configuration says, by default. Greedy decoding alone can;
                - seed (int): makes sampling reproducible, for the same recordings and batch size, and leaves torch's
                  global state as it was. Greedy decoding, the default, needs none;
                - progress (callable): called with (frames done, frames) of the recording in hand as windows finish;
                - anything else goes to `model.generate`: do_sample, temperature, num_beams, ...

        Returns:
            For each recording `{"audio": float32 (sample,), "sampling_rate": Hz}`; several channels make the audio
            (channel, sample). With `return_confidence` also `"confidence"`: float32 (frame,) or (channel, frame).

        Raises:
            ValueError, OSError: the audio cannot be read, or a parameter is out of its range; the message says which.
        """
        if isinstance(audio, list) and not audio:
            return []
        return super().__call__(audio, **parameters)

    def stream(self, audio: Any, batch_size: int | None = None, **parameters) -> Iterator[np.ndarray | dict]:
        """Enhances one recording of any length in constant memory; a path is read as it goes.

        Takes the parameters of a call, and yields float32 (channel, sample) pieces which, end to end, are the audio of
        that call. With `return_confidence` a piece is `{"audio": (channel, sample), "confidence": (channel, frame)}`:
        the confidence of the frames finished since the piece before, which runs a little ahead of the audio.
        """
        for _, pieces in self.stream_many([audio], batch_size, **parameters):
            yield from pieces

    def stream_many(
        self, recordings: Iterable[Any], batch_size: int | None = None, **parameters
    ) -> Iterator[tuple[Any, Iterator[np.ndarray | dict]]]:
        """`stream` over many recordings, whose windows share batches.

        Yields:
            each recording with its pieces, to be consumed before the next. What is wrong with a recording is raised by
            its own pieces, the others go on; what is wrong with a parameter is raised at once.
        """
        preprocess, forward, postprocess = self._sanitize_parameters(**parameters)
        preprocess = {**self._preprocess_params, **preprocess}
        forward = {**self._forward_params, **forward}
        postprocess = {**self._postprocess_params, **postprocess}
        render = self._render_with_confidence if postprocess.pop("return_confidence", False) else self._render
        items = _tag_items(recordings, lambda recording: self.preprocess(recording, **preprocess))
        rows = self._run_batches(items, batch_size or self._batch_size, forward)
        return (
            (tag.recording, render(_raise_errors(row for _, row in group), **postprocess))
            for tag, group in itertools.groupby(rows, key=lambda row: row[0])
        )

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Saves model, processor, codec and the code of all: a directory, or Hub repository, that stands alone.

        Raises:
            ValueError: the model holds adapters, of which alone the library would save the one that is active.
        """
        if adapters := getattr(self.model, "peft_config", None):
            raise ValueError(
                f"the model holds adapters ({', '.join(adapters)}), and would be saved without its own weights: save a"
                " pipeline that has used none, or merge one with `dacse convert --adapter`"
            )
        if push_to_hub:  # the whole; each part alone would leave out the code of the others
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), **kwargs)
        os.makedirs(save_directory, exist_ok=True)
        implementation = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        self.model.config.custom_pipelines = {TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "audio"}}
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def get_iterator(self, *args, **kwargs) -> Iterator[dict[str, Any]]:
        """The library's, which would draw a number from torch's global state to seed its data loader."""
        iterator = super().get_iterator(*args, **kwargs)
        iterator.loader.loader.generator = torch.Generator()
        return iterator

    def _sanitize_parameters(self, **parameters) -> tuple[dict, dict, dict]:
        self._window_lengths(parameters.get("window_seconds"), parameters.get("overlap_seconds"))
        if "regions" in parameters:
            parameters["regions"] = check_regions(parameters["regions"])
        if not 0 <= parameters.get("strength", 1) <= 1:
            raise ValueError(f"strength is {parameters['strength']}; it goes from 0 (the input) to 1 (enhanced)")
        rate = parameters.get("output_sampling_rate")
        if rate not in (None, "input") and not (isinstance(rate, int) and rate > 0):
            raise ValueError(f"output_sampling_rate is {rate!r}; give a whole number of Hz, 'input' or None")
        if refused := sorted(REFUSED_PARAMETERS & parameters.keys()):
            raise ValueError(f"{refused[0]} is not for this pipeline, whose windows are answered whole, and once")
        preprocess = {name: parameters.pop(name) for name in PREPROCESS_PARAMETERS & parameters.keys()}
        postprocess = {name: parameters.pop(name) for name in POSTPROCESS_PARAMETERS & parameters.keys()}
        if "return_confidence" in parameters:
            postprocess["return_confidence"] = parameters["return_confidence"]
        return preprocess, parameters, postprocess

    def preprocess(
        self, audio, sampling_rate=None, window_seconds=None, overlap_seconds=None, regions=None
    ) -> Iterator[dict[str, Any]]:
        """Yields the windows of one recording as prompts."""
        length, overlap = self._window_lengths(window_seconds, overlap_seconds)
        recording = open_recording(self.processor, audio, sampling_rate, regions)
        windows = 0
        whole = self.model.config.window_frames is not None
        for window in cut_recording(self.processor, recording, length, overlap, whole):
            windows += 1
            input_ids = self.processor.build_prompt(window.codes[None])
            is_last = window.span.last == window.num_frames and windows % recording.channels == 0
            yield {
                "input_ids": input_ids,
                "attention_mask": torch.ones_like(input_ids),
                "window": window,
                "is_last": torch.tensor([is_last]),
            }

    def _window_lengths(self, window_seconds: float | None, overlap_seconds: float | None) -> tuple[int, int]:
        """Frames of a window and of an overlap."""
        frame_rate, config = self.processor.frame_rate, self.model.config
        length = window_frames(window_seconds, frame_rate, config.max_frames, config.window_frames)
        return length, overlap_frames(overlap_seconds, frame_rate, length)

    def _forward(
        self,
        model_inputs,
        adapter=None,
        seed=None,
        return_confidence=False,
        progress=None,
        minimum_risk=None,
        **generate_kwargs,
    ) -> dict[str, Any]:
        """Has the windows of a batch enhanced. The library hands over a single one without the lists of a batch."""
        is_batch = isinstance(model_inputs["window"], list)
        windows = model_inputs["window"] if is_batch else [model_inputs["window"]]
        rows = [EnhancedWindow(window, window.codes, torch.ones(window.codes.shape[1])) for window in windows]
        generated = [index for index, window in enumerate(windows) if window.is_generated]
        if generated:
            use_adapter(self.model, adapter)
            prepared = self._prepare_generate_kwargs(generate_kwargs)
            # Another seed for every batch: the windows of a recording are not to share their random numbers.
            with _seeded(seed if seed is None else seed + windows[0].span.start, self.device):
                ids = self.model.generate(
                    input_ids=model_inputs["input_ids"][generated],
                    attention_mask=model_inputs["attention_mask"][generated],
                    **self._forced_ids([windows[index] for index in generated]),
                    **self._code_vectors(minimum_risk, prepared),
                    **prepared,
                )
            probabilities = self.model.token_probabilities(ids) if return_confidence else [None] * len(ids)
            for index, row_ids, row_probabilities in zip(generated, ids, probabilities, strict=True):
                codes = self.processor.clean_codes(row_ids)[0].cpu()
                if codes.shape != windows[index].codes.shape:
                    raise ValueError(
                        f"a window of {windows[index].codes.shape[1]} frames was answered by {codes.shape[1]}: leave "
                        "limits of length out of the generation configuration"
                    )
                rows[index] = EnhancedWindow(windows[index], codes, _frame_means(windows[index], row_probabilities))
        if progress is not None:
            for window in windows:
                progress(window.span.last, window.num_frames)
        if is_batch:
            return {"row": rows, "is_last": model_inputs["is_last"]}
        return {"row": rows[0], "is_last": model_inputs["is_last"]}

    def _forced_ids(self, windows: list[Window]) -> dict[str, torch.Tensor]:
        """The noisy ids that must come where the model has no choice, as an argument of `generate`."""
        if all(window.free.all() for window in windows):
            return {}
        rows = []
        for window in windows:
            noisy = self.processor.build_prompt(window.codes[None])[0, 1:-1]
            rows.append(noisy.masked_fill(torch.from_numpy(window.free).repeat_interleave(len(window.codes)), -1))
        return {"forced_ids": torch.nn.utils.rnn.pad_sequence(rows, True, padding_value=-1).to(self.device)}

    def _code_vectors(self, minimum_risk: bool | None, prepared: dict) -> dict[str, torch.Tensor]:
        """Those of the codec, as an argument, where they are asked for, or the model's choice can be followed."""
        if minimum_risk is None:
            defaults = prepared.get("generation_config", self.model.generation_config)
            do_sample, num_beams = (prepared.get(name, getattr(defaults, name)) for name in ("do_sample", "num_beams"))
            minimum_risk = self.model.config.minimum_risk and not do_sample and num_beams in (None, 1)
        return {"code_vectors": self.processor.code_vectors} if minimum_risk else {}

    def postprocess(
        self, model_outputs, strength=1.0, output_sampling_rate=None, keep_recording=None, return_confidence=False
    ) -> dict[str, Any]:
        """Makes one result of all windows of a recording."""
        rows = [output["row"] for output in model_outputs]
        recording = rows[0].window.recording
        pieces = list(self._render(iter(rows), strength, output_sampling_rate, keep_recording))
        result = {"audio": np.concatenate(pieces, axis=1)}
        if return_confidence:
            result["confidence"] = _confidence(rows, recording.channels)
        if recording.channels == 1:
            result = {name: value[0] for name, value in result.items()}
        return result | {"sampling_rate": self._output_rate(recording, output_sampling_rate)}

    def _render(
        self, rows: Iterator[EnhancedWindow], strength=1.0, output_sampling_rate=None, keep_recording=None
    ) -> Iterator[np.ndarray]:
        first = next(rows)
        rate = self._output_rate(first.window.recording, output_sampling_rate)
        keep = self.model.config.keep_recording if keep_recording is None else keep_recording
        yield from render_recording(self.processor, itertools.chain([first], rows), strength, rate, keep)

    def _render_with_confidence(self, rows: Iterator[EnhancedWindow], *args, **kwargs) -> Iterator[dict]:
        taken = []  # windows that rendering has asked for since the last piece

        def noted() -> Iterator[EnhancedWindow]:
            for row in rows:
                taken.append(row)
                yield row

        for piece in self._render(noted(), *args, **kwargs):
            yield {"audio": piece, "confidence": _confidence(taken, len(piece))}
            taken.clear()

    def _output_rate(self, recording: Recording, output_sampling_rate: int | str | None) -> int:
        named = {None: self.processor.sampling_rate, "input": recording.sampling_rate}
        return named.get(output_sampling_rate, output_sampling_rate)

    def _run_batches(self, items: Iterator, batch_size: int, forward: dict) -> Iterator[tuple["_Tag", Any]]:
        """Tagged windows in, tagged enhanced windows out, in the same order; errors pass through."""
        collate = pad_collate_fn(self.tokenizer, None)
        while batch := list(itertools.islice(items, batch_size)):
            windows = [item for _, item in batch if not isinstance(item, Exception)]
            rows = iter(self.forward(collate(windows), **forward)["row"] if windows else [])
            for tag, item in batch:
                yield tag, item if isinstance(item, Exception) else next(rows)


@dataclass(frozen=True, eq=False)
class _Tag:
    """Which recording of a stream a window belongs to; equal only to itself."""

    recording: Any


def _tag_items(recordings: Iterable[Any], preprocess: Callable[[Any], Iterator[dict]]) -> Iterator[tuple[_Tag, Any]]:
    """Windows of many recordings, each with its recording; one that cannot be read ends in its error."""
    for recording in recordings:
        tag = _Tag(recording)
        try:
            for item in preprocess(recording):
                yield tag, item
        except (OSError, ValueError) as error:
            yield tag, error


def _raise_errors(rows: Iterable[Any]) -> Iterator[Any]:
    for row in rows:
        if isinstance(row, Exception):
            raise row
        yield row


def _confidence(rows: list[EnhancedWindow], channels: int) -> np.ndarray:
    """Of windows, every channel of each in turn: the confidence of the frames they own, (channel, frame)."""
    owned = [np.zeros((channels, 0), np.float32)]
    for first in range(0, len(rows), channels):
        owned.append(np.stack([row.owned(row.confidence) for row in rows[first : first + channels]]))
    return np.concatenate(owned, axis=1)


def _frame_means(window: Window, probabilities: torch.Tensor | None) -> torch.Tensor | None:
    """Of a window's clean ids' probabilities (token,), nan elsewhere: means (frame,), 1 where ids were forced."""
    if probabilities is None:
        return None
    means = probabilities[~probabilities.isnan()].unflatten(0, (-1, len(window.codes))).mean(1).cpu()
    return means.where(torch.from_numpy(window.free[: len(means)]), 1.0)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds torch for the block and puts its global state back afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield
