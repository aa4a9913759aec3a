"""The processor: audio to prompts and labels for the language model, token ids back to audio; owns the codec."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, DacModel, ProcessorMixin

from .audio_dacse import load_audio, resample, resample_blocks, stream_audio
from .codec_dacse import (
    code_vectors,
    codec_from_descript,
    decode_blocks,
    decode_in_pieces,
    encode_blocks,
    encode_in_pieces,
    load_codec,
)
from .codes_dacse import codes_to_ids, ids_to_codes

CODEC_FOLDER = "audio_tokenizer"


class DacSeProcessor(ProcessorMixin):
    """Turns audio into token ids and token ids into audio.

    The token layout is `id = first_code_id + codebook * codebook_size + code`, frame by frame (see `codes_to_ids`).
    Ids and codes are torch tensors, waveforms numpy arrays. The codec runs on its own device, in float32; move it with
    `processor.audio_tokenizer.to(device)`.

    Args:
        audio_tokenizer: the codec.
        num_codebooks, codebook_size, sampling_rate, hop_length: those of the codec, written beside the model for
            readers that do not load it; checked when given.
        first_code_id: id of code 0 of the first codebook.
        bos_token_id, pad_token_id, eos_token_id, start_clean_token_id, unk_token_id: ids of the special tokens.

    Raises:
        ValueError: a given number contradicts the codec.
    """

    audio_tokenizer_class = "DacModel"
    padding_side = "left"  # prompts are continued on the right
    model_input_names = ["input_ids", "attention_mask"]

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
    ):
        super().__init__(audio_tokenizer=audio_tokenizer)
        audio_tokenizer.eval().float()
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

    @classmethod
    def from_codec(cls, codec: str | os.PathLike | DacModel, **layout: int) -> "DacSeProcessor":
        """A processor around a codec: a `DacModel`, or the Hub name (`"descript/dac_44khz"`) or directory of one.

        A `DacModel` is taken over: it becomes float32 and, once it has been used, gets quicker layers.
        """
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

    def __call__(
        self,
        audio: Any,
        clean_audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepares prompts `[bos] noisy [start_clean]`, or with `clean_audio` whole training sequences.

        Args:
            audio: one recording or a list of them, each of any kind and rate `load_audio` reads. The model hears one
                channel: a recording of several channels becomes as many rows.
            clean_audio: the clean counterparts, as long as their noisy ones, for training: rows become
                `[bos] noisy [start_clean] clean [eos]` and `labels` are added.
            sampling_rate: of bare arrays, in Hz.
            return_tensors: "pt" or "np".

        Returns:
            `input_ids`, `attention_mask` and, with `clean_audio`, `labels`, each (batch, token), padded on the left.
            Labels are -100 up to and including `start_clean`, so that only the clean tokens and `eos` are learned.

        Raises:
            ValueError: see `load_audio`; or a recording and its clean counterpart differ in shape.
        """
        noisy = self._read(audio, sampling_rate)
        rows = [self.build_prompt(codes[None])[0] for codes in self._encode_rows(noisy)]
        labels = [torch.full_like(row, -100) for row in rows]
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
        batch = {
            "input_ids": self._pad(rows, self.pad_token_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in rows], 0),
        }
        if clean_audio is not None:
            batch["labels"] = self._pad(labels, -100)
        return BatchFeature(batch, tensor_type=return_tensors)

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

    def build_prompt(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes of noisy audio (batch, codebook, frame) as prompts (batch, token): `[bos] noisy [start_clean]`."""
        ids = codes_to_ids(codes, self.codebook_size, self.first_code_id)
        ends = ids.new_tensor([self.bos_token_id, self.start_clean_token_id]).expand(len(ids), 2)
        return torch.cat([ends[:, :1], ids, ends[:, 1:]], dim=1)

    def decode(self, ids: torch.Tensor) -> list[np.ndarray]:
        """Decodes what a model generated.

        Args:
            ids: (batch, token): whole sequences, of which the tokens behind `start_clean` are decoded, or clean tokens
                alone. Each row ends at its first `eos` or `pad`.

        Returns:
            one float32 waveform (frame * hop_length,) per row.

        Raises:
            ValueError: the tokens of a row are not whole frames on the codebook grid.
        """
        return _run_by_length(self.decode_codes, [self.clean_codes(row)[0] for row in ids])

    def clean_codes(self, row: torch.Tensor) -> torch.Tensor:
        """The codes (1, codebook, frame) of one row (token,) of what `decode` takes."""
        start = (row == self.start_clean_token_id).nonzero()
        if len(start):
            row = row[start[0] + 1 :]
        end = ((row == self.eos_token_id) | (row == self.pad_token_id)).nonzero()
        if len(end):
            row = row[: end[0]]
        return ids_to_codes(row[None], self.num_codebooks, self.codebook_size, self.first_code_id)

    def _read(self, audio: Any, sampling_rate: int | None) -> list[np.ndarray]:
        sources = audio if isinstance(audio, (list, tuple)) else [audio]
        waveforms = [resample(*load_audio(source, sampling_rate), self.sampling_rate) for source in sources]
        if not all(waveform.size for waveform in waveforms):
            raise ValueError(f"a recording is shorter than one sample at {self.sampling_rate} Hz; give a longer one")
        return waveforms

    def _encode_rows(self, waveforms: list[np.ndarray]) -> list[torch.Tensor]:
        rows = [torch.from_numpy(channel) for waveform in waveforms for channel in waveform]
        return _run_by_length(lambda batch: encode_in_pieces(self.audio_tokenizer, batch), rows)

    def _target(self, codes: torch.Tensor) -> torch.Tensor:
        ids = codes_to_ids(codes[None], self.codebook_size, self.first_code_id)[0]
        return torch.cat([ids, ids.new_tensor([self.eos_token_id])])

    def _pad(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.padding_side)

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
