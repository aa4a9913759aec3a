"""The pipeline for task "audio-enhancement": the engine with the manners of the library's pipelines."""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DacModel, Pipeline, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

from .adapters_dacse import tuner_layers
from .call_dacse import EnhancedRecording
from .device_dacse import check_device, check_dtype, is_imitated
from .engine_dacse import Enhancer
from .layout_dacse import check_model, find_processor, new_processor
from .options_dacse import EnhanceOptions

logger = logging.getLogger(__name__)
TASK = "audio-enhancement"


class AudioEnhancementPipeline(Pipeline):
    """Noisy speech in, clean speech out.

    A recording is encoded as one piece and cut into windows of codes that overlap; windows of all channels and of all
    waiting recordings fill one batch after another. Neighbouring windows are joined as codes, in the middle of their
    overlap, and decoded as one piece: a joint so made is as smooth as the audio around it.

    The output has exactly `round(samples * rate_out / rate_in)` samples, the channels of the input in their order, and
    no hidden normalisation of its level. Pauses stay as quiet as they are, and digital silence silent. Any number of
    threads may call one pipeline.

    Args:
        model: A `DacSeForEnhancement`, or a `PeftModel` of one.
        processor: Its processor; by default the one saved beside the model.
        codec: A `DacModel`, or the directory or Hub id of one, for a model without a processor (the released plain
            Llama repository). By default `descript/dac_44khz`, where it fits.
        kwargs: Those of `transformers.Pipeline`, and any parameter of a call as the default of all calls.

    Raises:
        ValueError: If model, processor and codec do not belong together, or the device is not one of this machine's.
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
        **kwargs: Any,
    ):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_model(model)
        check_device(kwargs.get("device"))
        check_dtype(kwargs.get("dtype"))
        if codec is not None:
            processor = new_processor(model, codec)
        elif processor is None:
            processor = find_processor(model)
        self.enhancer = Enhancer(model, processor)
        super().__init__(model=model, processor=processor, **kwargs)
        processor.audio_tokenizer.to(self.device)
        self.enhancer.check(self._options({}))
        if self.model.device.type == "cpu" and is_imitated(self.model.dtype):
            dtype = str(self.model.dtype).removeprefix("torch.")
            logger.warning("this CPU has no arithmetic in %s and imitates it: float32 is many times faster", dtype)

    def __call__(
        self, audio: Any, num_workers: int | None = None, batch_size: int | None = None, **parameters: Any
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Enhances one recording, a list of them, or a generator or dataset of them, which streams.

        Args:
            audio: A path, URL, bytes, file object, numpy array, torch tensor, `{"array" or "raw", "sampling_rate"}`,
                decoded `datasets` value or output of an audio pipeline; or many of them.
            num_workers: As of other pipelines; recordings are read in this process.
            batch_size: Windows enhanced together, over channels and recordings.
            parameters: Any option of `EnhanceOptions`, or argument of `generate`; the latter also as
                `generate_kwargs`.

        Returns:
            For each recording `{"audio": float32 (sample,), "sampling_rate": Hz}`; several channels make the audio
            (channel, sample). With `return_confidence` also `"confidence"`: float32 (frame,) or (channel, frame).

        Raises:
            ValueError: If a parameter is out of its range, before any audio is read; or a recording cannot be read. Of
                many, one that cannot be read raises when its turn comes; the others are done before a list raises.
            OSError: If a recording cannot be opened.
        """
        options = self._options(parameters | ({} if batch_size is None else {"batch_size": batch_size}))
        if not is_many(audio):
            return join_pieces(next(self.enhancer.stream_many([audio], options)), options)
        if isinstance(audio, Sequence):
            return self._enhance_all(audio, options)
        return map(functools.partial(join_pieces, options=options), self.enhancer.stream_many(audio, options))

    def stream(self, audio: Any, **parameters: Any) -> Iterator[np.ndarray | dict[str, np.ndarray]]:
        """Enhances one recording of any length in constant memory; a path is read as it goes.

        Takes the parameters of a call, and yields float32 (channel, sample) pieces which, end to end, are the audio of
        that call. With `return_confidence` a piece is `{"audio": (channel, sample), "confidence": (channel, frame)}`:
        the confidence of the frames finished since the piece before, which runs a little ahead of the audio.
        """
        for _, pieces in self.stream_many([audio], **parameters):
            yield from pieces

    def stream_many(
        self, recordings: Iterable[Any], **parameters: Any
    ) -> Iterator[tuple[Any, Iterator[np.ndarray | dict[str, np.ndarray]]]]:
        """`stream` over many recordings, whose windows share batches.

        Yields:
            Each recording with its pieces, to be consumed before the next. What is wrong with a recording is raised by
            its own pieces, the others go on; what is wrong with a parameter is raised at once.
        """
        options = self._options(parameters)
        enhanced = self.enhancer.stream_many(recordings, options)
        return ((one.audio, _pieces(one, options.return_confidence)) for one in enhanced)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves model, processor, codec and the code of all: a directory, or Hub repository, that stands alone.

        Raises:
            ValueError: If the model holds adapters, of which alone the library would save the one that is active.
        """
        if any(tuner_layers(self.model)):
            raise ValueError(
                f"the model holds adapters ({', '.join(getattr(self.model, 'peft_config', {}))}), and would be saved"
                " without its own weights: save a pipeline that has used none, or merge one with"
                " `dacse convert --adapter`"
            )
        if push_to_hub:  # the whole; each part alone would leave out the code of the others
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), **kwargs)
        os.makedirs(save_directory, exist_ok=True)
        implementation = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        own = {TASK: {"impl": implementation, "pt": ["AutoModel"], "type": "audio"}}
        self.model.config.custom_pipelines = (getattr(self.model.config, "custom_pipelines", None) or {}) | own
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        """Part of the library's interface: a recording as it was given."""
        return {"audio": input_}

    def _forward(self, model_inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        return self(model_inputs["audio"], **parameters)

    def postprocess(self, model_outputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        """Part of the library's interface: the result as it is."""
        return model_outputs

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        EnhanceOptions.from_parameters(parameters)  # what a constructor is given is checked at once
        return {}, parameters, {}

    def _options(self, parameters: dict[str, Any]) -> EnhanceOptions:
        """Those of a call, on top of the constructor's."""
        given = EnhanceOptions.from_parameters(self._forward_params | {"batch_size": self._batch_size} | parameters)
        generate = self._prepare_generate_kwargs(dict(given.generate))
        if getattr(self, "assistant_model", None) is not None:
            generate.setdefault("assistant_model", self.assistant_model)
        return dataclasses.replace(given, generate=generate)

    def _enhance_all(self, recordings: Sequence[Any], options: EnhanceOptions) -> list[dict[str, Any]]:
        """All results; one that cannot be read raises after the others are done."""
        results, errors = [], {}
        for enhanced in self.enhancer.stream_many(recordings, options):
            try:
                results.append(join_pieces(enhanced, options))
            except Exception as error:
                errors[enhanced.index] = error
        for index, error in errors.items():
            kinds = (FileNotFoundError, PermissionError, OSError, ValueError, RuntimeError, Exception)
            kind = next(kind for kind in kinds if isinstance(error, kind))
            raise kind(f"recording {index + 1} of {len(recordings)}: {error}") from error
        return results


def join_pieces(enhanced: EnhancedRecording, options: EnhanceOptions) -> dict[str, Any]:
    """One result of all pieces of a recording."""
    pieces = list(enhanced)
    result = {"audio": np.concatenate([piece.audio for piece in pieces], axis=1)}
    if options.return_confidence:
        result["confidence"] = np.concatenate([piece.confidence for piece in pieces], axis=1)
    if enhanced.recording.channels == 1:
        result = {name: value[0] for name, value in result.items()}
    return result | {"sampling_rate": enhanced.recording.sampling_rate}


def _pieces(enhanced: EnhancedRecording, with_confidence: bool) -> Iterator[np.ndarray | dict[str, np.ndarray]]:
    for piece in enhanced:
        yield piece._asdict() if with_confidence else piece.audio


def is_many(audio: Any) -> bool:
    """Whether a call's input is many recordings: a list, a dataset or a column of one, a generator.

    >>> is_many(["a.wav"]), is_many("a.wav"), is_many([0.1, 0.2]), is_many(item for item in ())
    (True, False, False, True)
    """
    if isinstance(audio, (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray, torch.Tensor, dict)):
        return False
    if hasattr(audio, "read") or hasattr(audio, "get_all_samples"):
        return False
    if isinstance(audio, Sequence):
        return not (len(audio) and np.isscalar(audio[0]) and not isinstance(audio[0], str))
    return isinstance(audio, (Iterable, torch.utils.data.Dataset))
