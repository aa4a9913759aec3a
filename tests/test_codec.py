import copy
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import DacFeatureExtractor, EncodecConfig

from processing_dacse import codec_dacse
from processing_dacse.codec_dacse import (
    Dequantize,
    Quantize,
    decode_blocks,
    decode_in_pieces,
    decoder_stages,
    encode_blocks,
    encode_in_pieces,
    encoder_stages,
    load_codec,
)
from processing_dacse.descript_dacse import codec_from_descript
from tests.tiny import tiny_codec

GOLDENS = Path(__file__).parent / "goldens"
RATIOS = [[2, 4], [4, 2], [3, 5], [2, 3, 4], [7]]
CODECS = {tuple(ratios): tiny_codec(downsampling_ratios=ratios).double() for ratios in RATIOS}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) / 3


def random_codes(codec, batch: int, frames: int) -> torch.Tensor:
    shape = (batch, codec.config.n_codebooks, frames)
    return torch.randint(codec.config.codebook_size, shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def pieces_of(values: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_dacse, "PIECE_VALUES", values)
        yield


def encode_whole(codec, waveform: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(waveform, (0, -waveform.shape[1] % codec.config.hop_length))
    with torch.inference_mode():
        return codec.encode(padded[:, None].to(codec.dtype)).audio_codes


def decode_whole(codec, codes: torch.Tensor) -> torch.Tensor:
    """By the library, whose transposed convolutions leave out their last sample where the ratio is odd."""
    whole = copy.deepcopy(codec)
    for block in whole.decoder.block:
        block.conv_t1.output_padding = (block.conv_t1.stride[0] % 2,)
    with torch.inference_mode():
        return whole.decode(audio_codes=codes).audio_values


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 700), st.integers(1, 500))
@settings(deadline=None, max_examples=40)
def test_pieces_give_the_codes_of_the_whole_for_every_length(ratios, samples, piece):
    codec, waveform = CODECS[ratios], noise(2, samples)
    with pieces_of(piece):
        codes = encode_in_pieces(codec, waveform)
    assert codes.shape == (2, codec.config.n_codebooks, math.ceil(samples / codec.config.hop_length))
    assert torch.equal(codes, encode_whole(codec, waveform))


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 120), st.integers(1, 500))
@settings(deadline=None, max_examples=40)
def test_pieces_give_the_samples_of_the_whole_for_every_length(ratios, frames, piece):
    codec = CODECS[ratios]
    codes = random_codes(codec, 2, frames)
    with pieces_of(piece):
        waveform = decode_in_pieces(codec, codes)
    assert waveform.shape == (2, frames * codec.config.hop_length)  # at odd ratios too
    # float64 rounds at 1e-16; a sample that misses a neighbour is off by more than 1e-6
    torch.testing.assert_close(waveform, decode_whole(codec, codes), rtol=0, atol=1e-12)


def test_in_float32_all_but_near_ties_are_equal():
    codec = tiny_codec(downsampling_ratios=[4, 8])
    waveform = noise(1, 40_000).float()
    with pieces_of(8000):
        codes = encode_in_pieces(codec, waveform)
        decoded = decode_in_pieces(codec, codes)
    assert len(codes.unique()) == codec.config.codebook_size
    assert (codes != encode_whole(codec, waveform)).float().mean() < 1e-3
    torch.testing.assert_close(decoded, decode_whole(codec, codes))


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
def test_margins_are_what_a_stage_sees_and_no_wider(ratios):
    codec, middle = CODECS[tuple(ratios)], 50
    stages = encoder_stages(codec) + decoder_stages(codec)
    assert [(stage.columns_in, stage.columns_out) for stage in stages] == [(r, 1) for r in ratios] + [
        (1, r) for r in ratios[::-1]
    ]
    for stage in stages:
        layers = [module for module in stage.modules if not isinstance(module, Quantize | Dequantize)]
        channels = next(torch.nn.Sequential(*layers).parameters())
        columns = noise(1, channels.shape[1], (2 * middle + 1) * stage.columns_in).requires_grad_()
        own = slice(middle * stage.columns_out, (middle + 1) * stage.columns_out)
        torch.nn.Sequential(*layers)(columns)[..., own].sum().backward()
        seen = columns.grad[0].sum(0).nonzero() // stage.columns_in
        assert max(middle - seen.min(), seen.max() - middle) == stage.margin


@given(st.lists(st.integers(0, 300), max_size=6))
@settings(deadline=None, max_examples=20)
def test_blocks_of_any_lengths_are_bit_equal_to_one_block(lengths):
    codec = tiny_codec()
    waveform = noise(1, sum(lengths)).float()
    with pieces_of(500):
        codes = encode_in_pieces(codec, waveform)
        streamed = list(encode_blocks(codec, waveform.split(lengths, dim=1)))
        assert torch.equal(torch.cat([codes[..., :0], *streamed], dim=2), codes)
        decoded = decode_in_pieces(codec, codes)
        streamed = list(decode_blocks(codec, streamed))
        assert torch.equal(torch.cat([decoded[..., :0], *streamed], dim=1), decoded)


def test_a_batch_is_bit_equal_to_its_rows():
    codec, waveform = tiny_codec(), noise(3, 1000).float()
    codes = encode_in_pieces(codec, waveform)
    assert torch.equal(codes, torch.cat([encode_in_pieces(codec, row) for row in waveform.split(1)]))
    rows = torch.cat([decode_in_pieces(codec, row) for row in codes.split(1)])
    assert torch.equal(decode_in_pieces(codec, codes), rows)


@pytest.mark.parametrize("name", ["PIECE_VALUES", "PIECE_SECONDS"])
def test_no_stage_sees_more_than_a_piece_and_its_margins(name, monkeypatch):
    codec = tiny_codec()
    monkeypatch.setattr(codec_dacse, name, {"PIECE_VALUES": 400, "PIECE_SECONDS": 0.02}[name])
    windows, seen = codec_dacse._windows, {}

    def watched(blocks, columns, piece, margin):
        for window, first, last in windows(blocks, columns, piece, margin):
            seen.setdefault((columns, piece, margin), []).append(window.shape[-1])
            yield window, first, last

    monkeypatch.setattr(codec_dacse, "_windows", watched)
    stages = encoder_stages(codec) + decoder_stages(codec)
    decode_in_pieces(codec, encode_in_pieces(codec, noise(1, 8000)))
    assert len(seen) == len(stages)
    for stage in stages:
        widths = seen[stage.columns_in, stage.piece, stage.margin]
        assert max(widths) <= (stage.piece + 2 * stage.margin) * stage.columns_in < 300
        assert len(widths) > 1
    assert sum(map(len, seen.values())) > 8000 / 300 * len(stages) / 4  # rates fall from stage to stage


def test_frames_are_counted_as_the_feature_extractor_does():
    codec = tiny_codec()
    extractor = DacFeatureExtractor(sampling_rate=8000, hop_length=8)
    for samples in (1, 7, 8, 9, 400):
        padded = extractor(noise(samples).float().numpy(), sampling_rate=8000, return_tensors="pt").input_values
        assert encode_in_pieces(codec, noise(1, samples)).shape[-1] == padded.shape[-1] // 8


def test_codes_and_samples_can_be_learned_from():
    codec = tiny_codec()
    codes = encode_in_pieces(codec, noise(1, 80))
    weight = torch.zeros(16, 4, requires_grad=True)
    torch.nn.functional.embedding(codes, weight).sum().backward()  # refuses inference tensors
    assert not decode_in_pieces(codec, codes).is_inference()


def test_descript_checkpoint_gives_the_codes_and_audio_of_the_original_package():
    codec = codec_from_descript(GOLDENS / "descript_weights.pth")
    golden = load_file(GOLDENS / "descript_golden.safetensors")
    assert codec.config.sampling_rate == 8000 and not codec.training
    assert len(golden["codes"].unique()) > 10 and golden["decoded"].std() > 0.1  # the golden has something to say
    assert torch.equal(encode_in_pieces(codec, golden["waveform"]), golden["codes"])
    # another implementation of the same float32 sums
    torch.testing.assert_close(decode_in_pieces(codec, golden["codes"]), golden["decoded"], rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 24}, "latent_dim is 24; DacModel has only 16"),
        ({"decoder_rates": [2, 4]}, r"decoder_rates are \[2, 4\]; DacModel has only \[4, 2\]"),
    ],
)
def test_descript_shapes_that_dac_model_lacks_are_refused(change, message, tmp_path):
    checkpoint = torch.load(GOLDENS / "descript_weights.pth", weights_only=True)
    checkpoint["metadata"]["kwargs"] |= change
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        codec_from_descript(tmp_path / "weights.pth")


def test_a_file_that_is_no_descript_checkpoint_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is no descript-audio-codec checkpoint; it lacks state_dict and metadata"):
        codec_from_descript(tmp_path / "weights.pth")


def test_a_folder_that_holds_no_whole_codec_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"audio_tokenizer holds no DAC codec \(model_type None\)"):
        load_codec(tmp_path, subfolder="audio_tokenizer")
    EncodecConfig().save_pretrained(tmp_path / "encodec")
    with pytest.raises(ValueError, match=r"encodec holds no DAC codec \(model_type encodec\); give a place that does"):
        load_codec(tmp_path / "encodec")
    tiny_codec().save_pretrained(tmp_path / "dac")
    weights = load_file(tmp_path / "dac" / "model.safetensors")
    del weights["decoder.conv1.weight"]
    save_file(weights, tmp_path / "dac" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights, such as decoder.conv1.weight"):
        load_codec(tmp_path / "dac")
    tiny_codec(codebook_dim=8).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "dac")
    with pytest.raises(ValueError, match=r"weights of other shapes than its config.json, such as \('quantizer"):
        load_codec(tmp_path / "dac")
    (tmp_path / "dac" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="the codec in .*dac is damaged .*; get it again"):
        load_codec(tmp_path / "dac")
    (tmp_path / "dac" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        load_codec(tmp_path / "dac")


def test_the_codec_stays_as_its_owner_made_it():
    codec = tiny_codec(downsampling_ratios=[3, 5])
    kinds = [type(module) for module in codec.modules()]
    state = {name: value.clone() for name, value in codec.state_dict().items()}
    codes = random_codes(codec, 1, 4)
    before = codec.decode(audio_codes=codes).audio_values
    decode_in_pieces(codec, encode_in_pieces(codec, noise(1, 400).float()))
    assert [type(module) for module in codec.modules()] == kinds
    assert all(torch.equal(value, state[name]) for name, value in codec.state_dict().items())
    assert torch.equal(codec.decode(audio_codes=codes).audio_values, before)
    codec.encoder(noise(1, 1, 400).float()).sum().backward()
    assert codec.encoder.snake1.alpha.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_codes_and_samples_are_the_same_under_autocast_and_in_training(dtype):
    codec, waveform = tiny_codec(quantizer_dropout=0.5), noise(2, 400).float()
    codes = encode_in_pieces(codec, waveform)
    samples = decode_in_pieces(codec, codes)
    with torch.autocast("cpu", dtype):
        assert torch.equal(encode_in_pieces(codec.train(), waveform), codes)
        decoded = decode_in_pieces(codec, codes)
    assert decoded.dtype == torch.float32 and torch.equal(decoded, samples)
