"""The processor: audio to prompts and labels for the language model, token ids back to audio; owns the codec."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, DacModel, ProcessorMixin
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, Unpack
from transformers.utils import PaddingStrategy

from .audio_dacse import load_audio, resample, resample_blocks, stream_audio
from .codec_dacse import (
    code_vectors,
    decode_blocks,
    decode_in_pieces,
    encode_blocks,
    encode_in_pieces,
    load_codec,
)
from .codes_dacse import codes_to_ids, ids_to_codes
from .descript_dacse import codec_from_descript

CODEC_FOLDER = "audio_tokenizer"
IGNORED = -100  # a label that is not learned


class DacSeProcessorKwargs(ProcessingKwargs, total=False):
    """What a call of the processor takes beside the audio: `sampling_rate`, `padding`, `return_tensors`, ..."""

    audio_kwargs: AudioKwargs


class DacSeProcessor(ProcessorMixin):
    """Turns audio into token ids and token ids into audio.

    The token layout is `id = first_code_id + codebook * codebook_size + code`, frame by frame (see `codes_to_ids`).
    Ids and codes are torch tensors, waveforms numpy arrays. The codec runs on its own device, in float32; move it with
    `processor.audio_tokenizer.to(device)`.

    Args:
        audio_tokenizer: The codec; one of another dtype is copied to float32, the given one stays as it is.
        num_codebooks: Of the codec. This and the next three are written beside the model for readers that do not load
            the codec; checked when given.
        codebook_size: Of the codec.
        sampling_rate: Of the codec, in Hz.
        hop_length: Of the codec, in samples.
        first_code_id: Id of code 0 of the first codebook.
        bos_token_id: Id of the first token of a prompt.
        pad_token_id: Id of padding.
        eos_token_id: Id after the last clean token.
        start_clean_token_id: Id between noisy and clean tokens.
        unk_token_id: Id the layout reserves.
        window_frames: Frames of the clips the weights were trained on, where all had one length and prompts of another
            would be strange to the model. None, as of the released models: any length.
        minimum_risk: Whether greedy decoding is to take the code nearest to what the model expects rather than the
            likeliest. It helps models that are often unsure.
        keep_recording: Whether the recording is to be filtered to the levels of what was generated, with generated
            sound only where the recording has none. It helps models whose codec or size makes voices rough.

    Raises:
        ValueError: If a given number contradicts the codec.
    """

    audio_tokenizer_class = "DacModel"
    valid_processor_kwargs = DacSeProcessorKwargs
    audio_kwargs = {"padding": True, "return_tensors": "pt"}
    padding_side = "left"  # prompts are continued on the right
    model_input_names = ["input_ids", "attention_mask"]
    pattern = "flattened"

    load_audio = staticmethod(load_audio)
    stream_audio = staticmethod(stream_audio)
    resample = staticmethod(resample)
    resample_blocks = staticmethod(resample_blocks)

    def __init__(
        self,
        audio_tokenizer: DacModel,
        num_codebooks: int | None = None,
        codebook_size: int | None = None,
        sampling_rate: int | None = None,
        hop_length: int | None = None,
        first_code_id: int = 5,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int = 2,
        start_clean_token_id: int = 3,
        unk_token_id: int = 4,
        window_frames: int | None = None,
        minimum_risk: bool = False,
        keep_recording: bool = False,
    ):
        if audio_tokenizer.dtype != torch.float32:
            audio_tokenizer = copy.deepcopy(audio_tokenizer).float()
        super().__init__(audio_tokenizer=audio_tokenizer)
        config = audio_tokenizer.config
        self.num_codebooks, self.codebook_size = config.n_codebooks, config.codebook_size
        self.sampling_rate, self.hop_length = config.sampling_rate, config.hop_length
        given = {
            "num_codebooks": num_codebooks,
            "codebook_size": codebook_size,
            "sampling_rate": sampling_rate,
            "hop_length": hop_length,
        }
        for name, value in given.items():
            if value not in (None, getattr(self, name)):
                raise ValueError(
                    f"{name} is {value} in the processor and {getattr(self, name)} in its codec; "
                    "give the codec the model was trained with"
                )
        self.first_code_id = first_code_id
        self.bos_token_id = bos_token_id
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.start_clean_token_id = start_clean_token_id
        self.unk_token_id = unk_token_id
        self.window_frames = window_frames
        self.minimum_risk = minimum_risk
        self.keep_recording = keep_recording

    @classmethod
    def from_codec(cls, codec: str | os.PathLike | DacModel, **layout: int) -> "DacSeProcessor":
        """A processor around a codec: a `DacModel`, or the Hub name (`"descript/dac_44khz"`) or directory of one."""
        return cls(codec if isinstance(codec, DacModel) else load_codec(codec), **layout)

    @classmethod
    def from_descript(cls, weights_path: str | os.PathLike, **layout: int) -> "DacSeProcessor":
        """A processor around a checkpoint of the original descript-audio-codec package (`weights.pth`)."""
        return cls(codec_from_descript(weights_path), **layout)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def code_vectors(self) -> torch.Tensor:
        """What each code stands for, for `generate`: float32 (codebook, code, size), as far apart as in the codec."""
        return code_vectors(self.audio_tokenizer)

    def __call__(self, audio: Any, clean_audio: Any = None, **kwargs: Unpack[DacSeProcessorKwargs]) -> BatchFeature:
        """Prepares prompts `[bos] noisy [start_clean]`, or with `clean_audio` whole training sequences.

        Args:
            audio: One recording or a list of them, each of any kind and rate `load_audio` reads. The model hears one
                channel: a recording of several channels becomes as many rows.
            clean_audio: The clean counterparts, as long as their noisy ones, for training: rows become
                `[bos] noisy [start_clean] clean [eos]` and `labels` are added.
            kwargs: Those of the library's processors, of which these have a meaning here: `sampling_rate` of bare
                arrays, in Hz; `padding` (True by default, or "longest", "max_length", False) with `max_length` and
                `pad_to_multiple_of`, in tokens; `return_attention_mask`; `return_tensors` ("pt" by default, "np", or
                None for lists).

        Returns:
            `input_ids`, `attention_mask` and, with `clean_audio`, `labels`, each (batch, token), padded on the left.
            Labels are -100 up to and including `start_clean`, so that only the clean tokens and `eos` are learned.

        Raises:
            ValueError: If a recording cannot be read (see `load_audio`), or it and its clean counterpart differ in
                shape, or an argument has no meaning here.
        """
        options = self._merge_kwargs(**kwargs)["audio_kwargs"]
        if options.get("truncation"):
            raise ValueError("truncation would cut recordings short: enhance them in windows, or pass shorter ones")
        sampling_rate = options.get("sampling_rate")
        noisy = self._read(audio, sampling_rate)
        rows = [self.build_prompt(codes[None])[0] for codes in self._encode_rows(noisy)]
        labels = [torch.full_like(row, IGNORED) for row in rows]
        if clean_audio is not None:
            clean = self._read(clean_audio, sampling_rate)
            shapes = [waveform.shape for waveform in noisy], [waveform.shape for waveform in clean]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"(channel, sample) at {self.sampling_rate} Hz: noisy audio has {shapes[0]}, "
                    f"clean audio {shapes[1]}; give pairs of equal shape"
                )
            targets = [self._target(codes) for codes in self._encode_rows(clean)]
            rows = [torch.cat(pair) for pair in zip(rows, targets, strict=True)]
            labels = [torch.cat(pair) for pair in zip(labels, targets, strict=True)]
        batch = {"input_ids": (rows, self.pad_token_id)}
        if options.get("return_attention_mask") is not False:
            batch["attention_mask"] = [torch.ones_like(row) for row in rows], 0
        if clean_audio is not None:
            batch["labels"] = labels, IGNORED
        padded = {name: self._pad(rows, value, options) for name, (rows, value) in batch.items()}
        return BatchFeature(padded, tensor_type=options.get("return_tensors"))

    def encode(self, waveform: np.ndarray) -> torch.Tensor:
        """Encodes a waveform (channel, sample) at `sampling_rate` to codes, LongTensor (channel, codebook, frame).

        `ceil(samples / hop_length)` frames; the last one is completed with silence.
        """
        return encode_in_pieces(self.audio_tokenizer, torch.from_numpy(waveform))

    def encode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """Encodes a waveform that comes in blocks (channel, sample), yielding codes: `encode` for endless audio."""
        return (codes.cpu() for codes in encode_blocks(self.audio_tokenizer, map(torch.from_numpy, blocks)))

    def decode_codes(self, codes: torch.Tensor) -> np.ndarray:
        """Decodes codes (channel, codebook, frame) to a float32 waveform (channel, frame * hop_length)."""
        return decode_in_pieces(self.audio_tokenizer, codes).cpu().numpy()

    def decode_blocks(self, blocks: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
        """Decodes codes that come in blocks (channel, codebook, frame), yielding waveforms (channel, sample)."""
        return (waveform.cpu().numpy() for waveform in decode_blocks(self.audio_tokenizer, blocks))

    def build_prompt(self, codes: torch.LongTensor) -> torch.LongTensor:
        """Codes of noisy audio (batch, codebook, frame) as prompts (batch, token): `[bos] noisy [start_clean]`."""
        ids = codes_to_ids(codes, self.codebook_size, self.first_code_id)
        ends = ids.new_tensor([self.bos_token_id, self.start_clean_token_id]).expand(len(ids), 2)
        return torch.cat([ends[:, :1], ids, ends[:, 1:]], dim=1)

    def decode(self, token_ids: Any, **kwargs: Any) -> np.ndarray | list[np.ndarray]:
        """Decodes what a model generated.

        Args:
            token_ids: One row (token,) or many (batch, token), tensors or lists: whole sequences, of which the tokens
                after `start_clean` are decoded, or clean tokens alone. Each row ends at its first `eos` or `pad`.
                A row without `eos`, which was cut short, is decoded as far as whole frames go.
            kwargs: None; the library's pipelines pass those of tokenizers.

        Returns:
            A float32 waveform (frame * hop_length,), or a list of one for each row.

        Raises:
            ValueError: If a token is off the codebook grid, or a row that has ended is not whole frames.
        """
        if not isinstance(token_ids, torch.Tensor):
            token_ids = [torch.as_tensor(np.asarray(row)) for row in token_ids]
            token_ids = torch.stack(token_ids) if token_ids and token_ids[0].dim() == 0 else token_ids
        if isinstance(token_ids, torch.Tensor) and token_ids.dim() == 1:
            return self.decode(token_ids[None])[0]
        return _run_by_length(self.decode_codes, [self.clean_codes(row)[0] for row in token_ids])

    def batch_decode(self, token_ids: Any, **kwargs: Any) -> list[np.ndarray]:
        """Decodes rows (batch, token) of what a model generated, as `decode` does."""
        return self.decode(token_ids)

    def clean_codes(self, row: torch.LongTensor) -> torch.LongTensor:
        """The codes (1, codebook, frame) of one row (token,) of what `decode` takes."""
        start = (row == self.start_clean_token_id).nonzero()
        if len(start):
            row = row[start[0] + 1 :]
        end = ((row == self.eos_token_id) | (row == self.pad_token_id)).nonzero()
        has_ended = len(end) > 0 and bool(row[end[0]] == self.eos_token_id)
        row = row[: end[0]] if len(end) else row
        if not has_ended:
            row = row[: len(row) // self.num_codebooks * self.num_codebooks]
        return ids_to_codes(row[None], self.num_codebooks, self.codebook_size, self.first_code_id)

    def save_audio(self, audio: np.ndarray | list[np.ndarray], saving_path: Any, sampling_rate: int | None = None):
        """Writes waveforms as audio files; the name's ending says the format.

        Args:
            audio: (sample,) or (channel, sample), or a list of them.
            saving_path: A path, or a list of one for each waveform.
            sampling_rate: In Hz; the codec's by default.

        Raises:
            ValueError: If there are not as many paths as waveforms.
            soundfile.LibsndfileError: If a file cannot be written.
        """
        if not isinstance(audio, list):
            audio, saving_path = [audio], [saving_path]
        if isinstance(saving_path, (str, os.PathLike)) or len(audio) != len(saving_path):
            raise ValueError(f"{len(audio)} waveforms need as many paths, got {saving_path!r}")
        for waveform, path in zip(audio, saving_path, strict=True):
            soundfile.write(path, np.asarray(waveform).T, sampling_rate or self.sampling_rate)

    def _read(self, audio: Any, sampling_rate: int | None) -> list[np.ndarray]:
        is_many = isinstance(audio, (list, tuple)) and not (audio and np.isscalar(audio[0]))
        sources = audio if is_many else [audio]
        if not sources:
            raise ValueError("there is no recording in an empty list; give at least one")
        waveforms = [resample(*load_audio(source, sampling_rate), self.sampling_rate) for source in sources]
        if not all(waveform.size for waveform in waveforms):
            raise ValueError(f"a recording is shorter than one sample at {self.sampling_rate} Hz; give a longer one")
        return waveforms

    def _encode_rows(self, waveforms: list[np.ndarray]) -> list[torch.Tensor]:
        rows = [torch.from_numpy(channel) for waveform in waveforms for channel in waveform]
        return _run_by_length(lambda batch: encode_in_pieces(self.audio_tokenizer, batch), rows)

    def _target(self, codes: torch.LongTensor) -> torch.LongTensor:
        ids = codes_to_ids(codes[None], self.codebook_size, self.first_code_id)[0]
        return torch.cat([ids, ids.new_tensor([self.eos_token_id])])

    def _pad(self, rows: list[torch.LongTensor], value: int, options: dict[str, Any]) -> Any:
        """Rows as one tensor, or as lists where lists are asked for or rows are left as they are."""
        padding = options.get("padding")
        longest = max(len(row) for row in rows)
        if padding in (PaddingStrategy.MAX_LENGTH, "max_length"):
            longest = max(longest, options.get("max_length") or longest)
        longest += -longest % (options.get("pad_to_multiple_of") or 1)
        if padding not in (False, None, PaddingStrategy.DO_NOT_PAD, "do_not_pad"):
            filler = rows[0].new_full((longest,), value)  # a row of the length that all are to have
            rows = pad_sequence([filler, *rows], True, value, self.padding_side)[1:]
        is_list = options.get("return_tensors") is None or (isinstance(rows, list) and len({*map(len, rows)}) > 1)
        return [row.tolist() for row in rows] if is_list else torch.stack(list(rows))

    def to_dict(self) -> dict[str, Any]:
        """The token layout: what stands in `processor_config.json`. The codec is saved in a folder of its own."""
        layout = copy.copy(self)
        del layout.audio_tokenizer  # the library would copy its weights and note where it was loaded from
        return super(DacSeProcessor, layout).to_dict()

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Writes `processor_config.json` and the codec (under `audio_tokenizer/`, safetensors)."""
        self.audio_tokenizer.save_pretrained(os.path.join(save_directory, CODEC_FOLDER))
        files = super().save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(save_directory)), **kwargs)
        return files

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The processor's settings with the codec loaded from the same directory or repository and revision."""
        hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        codec_kwargs = {key: kwargs[key] for key in hub if key in kwargs}
        folder = os.path.join(kwargs.get("subfolder", ""), CODEC_FOLDER)
        processor_dict, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        processor_dict["audio_tokenizer"] = load_codec(pretrained_model_name_or_path, subfolder=folder, **codec_kwargs)
        return processor_dict, kwargs


def _run_by_length(run: Callable[[torch.Tensor], Iterable], rows: list[torch.Tensor]) -> list:
    """Runs the codec on stacks of rows of equal length and gives the results in the order of the rows.

    Never on padded rows: the codec's answer near the end of a row would depend on the padding.
    """
    results = [None] * len(rows)
    for length in {row.shape[-1] for row in rows}:
        indices = [index for index, row in enumerate(rows) if row.shape[-1] == length]
        for index, result in zip(indices, run(torch.stack([rows[index] for index in indices])), strict=True):
            results[index] = result
    return results


DacSeProcessor.register_for_auto_class()
