import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from processing_dacse import DacSeProcessor
from processing_dacse.codec_dacse import decode_in_pieces, encode_in_pieces
from tests.tiny import tiny_codec

GOLDENS = Path(__file__).parent / "goldens"
PROCESSOR = DacSeProcessor.from_codec(tiny_codec())
RATE, HOP = PROCESSOR.sampling_rate, PROCESSOR.hop_length


def noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32) / 3


def naive_ids(codes: torch.Tensor) -> list[int]:
    """Ids of codes (codebook, frame), one at a time."""
    return [5 + book * 16 + codes[book, frame].item() for frame in range(codes.shape[1]) for book in range(3)]


def test_a_prompt_is_bos_noisy_start_clean():
    waveform = noise(1, 100)
    inputs = PROCESSOR(waveform, sampling_rate=RATE)
    codes = encode_in_pieces(PROCESSOR.audio_tokenizer, torch.from_numpy(waveform))[0]
    assert inputs.input_ids.tolist() == [[0, *naive_ids(codes), 3]]
    assert inputs.attention_mask.tolist() == [[1] * (13 * 3 + 2)]
    assert set(inputs) == set(PROCESSOR.model_input_names)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4))
@settings(deadline=None, max_examples=20)
def test_a_batch_is_its_recordings_one_by_one_padded_on_the_left(lengths):
    waveforms = [noise(1, length, seed) for seed, length in enumerate(lengths)]
    batch = PROCESSOR(waveforms, sampling_rate=RATE)
    for waveform, ids, mask in zip(waveforms, batch.input_ids, batch.attention_mask, strict=True):
        alone = PROCESSOR(waveform, sampling_rate=RATE).input_ids[0]
        padding = len(ids) - len(alone)
        assert ids.tolist() == [1] * padding + alone.tolist()
        assert mask.tolist() == [0] * padding + [1] * len(alone)


def test_channels_become_rows_in_their_order():
    waveform = noise(3, 100)
    batch = PROCESSOR([waveform, waveform[:1]], sampling_rate=RATE).input_ids
    rows = [PROCESSOR(channel, sampling_rate=RATE).input_ids[0] for channel in waveform]
    assert torch.equal(batch, torch.stack([*rows, rows[0]]))


def test_labels_are_the_clean_tokens_and_eos_and_nothing_else():
    noisy, clean = [noise(1, 100), noise(1, 60)], [noise(1, 100, 1), noise(1, 60, 1)]
    batch = PROCESSOR(noisy, clean, sampling_rate=RATE)
    for row in range(2):
        prompt = PROCESSOR(noisy[row], sampling_rate=RATE).input_ids[0].tolist()
        target = [*naive_ids(PROCESSOR.encode(clean[row])[0]), 2]
        padding = batch.input_ids.shape[1] - len(prompt) - len(target)
        assert batch.input_ids[row].tolist() == [1] * padding + prompt + target
        assert batch.attention_mask[row].tolist() == [0] * padding + [1] * len(prompt + target)
        assert batch.labels[row].tolist() == [-100] * (padding + len(prompt)) + target


@pytest.mark.parametrize("clean", [[noise(1, 99)], [noise(2, 100)], [noise(1, 100), noise(1, 100)]])
def test_pairs_of_unequal_shape_are_refused(clean):
    with pytest.raises(ValueError, match=r"noisy audio has \[\(1, 100\)\], clean audio .*; give pairs of equal shape"):
        PROCESSOR([noise(1, 100)], clean, sampling_rate=RATE)


def test_audio_of_any_kind_and_rate_is_taken(tmp_path):
    waveform = noise(2, 3000)
    sf.write(tmp_path / "a.wav", waveform.T, 44100, subtype="FLOAT")
    batch = PROCESSOR([tmp_path / "a.wav", {"array": waveform, "sampling_rate": 44100}], return_tensors="np")
    frames = -(-round(3000 * RATE / 44100) // HOP)
    assert isinstance(batch.input_ids, np.ndarray) and batch.input_ids.shape == (4, frames * 3 + 2)
    np.testing.assert_array_equal(batch.input_ids[:2], batch.input_ids[2:])


def test_encoding_and_decoding_in_blocks_is_the_same_as_at_once():
    waveform = noise(2, 20_000)
    codes = torch.cat(list(PROCESSOR.encode_blocks(np.split(waveform, [7, 9000], axis=1))), dim=2)
    assert torch.equal(codes, PROCESSOR.encode(waveform))
    decoded = np.concatenate(list(PROCESSOR.decode_blocks(codes.split(300, dim=2))), axis=1)
    assert decoded.dtype == np.float32 and decoded.shape == waveform.shape
    np.testing.assert_array_equal(decoded, PROCESSOR.decode_codes(codes))


def test_decode_finds_the_clean_tokens_of_each_row():
    codes = PROCESSOR.encode(noise(3, 80))
    clean = PROCESSOR.build_prompt(codes)[:, 1:-1]
    prompt = PROCESSOR.build_prompt(PROCESSOR.encode(noise(1, 80, 1)))[0]
    eos, pad = torch.tensor([2]), torch.tensor([1])
    ids = torch.stack(
        [
            torch.cat([prompt, clean[0], eos]),
            torch.cat([pad.repeat(24), prompt, clean[1][:6], eos]),
            torch.cat([prompt, clean[2][:15], eos, pad.repeat(15)]),
        ]
    )
    kept = [(0, 10), (1, 2), (2, 5)]
    expected = [decode_in_pieces(PROCESSOR.audio_tokenizer, codes[row, None, :, :frames])[0] for row, frames in kept]
    for waveform, alone in zip(PROCESSOR.decode(ids), expected, strict=True):
        assert waveform.dtype == np.float32
        np.testing.assert_array_equal(waveform, alone)
    np.testing.assert_array_equal(PROCESSOR.decode(clean[:1])[0], expected[0])
    assert PROCESSOR.decode(prompt[None])[0].shape == (0,)


def test_one_row_or_many_are_decoded_of_any_kind():
    ids = PROCESSOR.build_prompt(PROCESSOR.encode(noise(2, 80)))[:, 1:-1]
    many = PROCESSOR.batch_decode(ids)
    for rows in (ids.tolist(), ids.numpy(), list(ids)):
        np.testing.assert_array_equal(np.stack(PROCESSOR.decode(rows)), np.stack(many))
    for row in (ids[0], ids[0].tolist(), ids[0].numpy()):
        np.testing.assert_array_equal(PROCESSOR.decode(row), many[0])


def test_a_row_cut_short_is_decoded_as_far_as_whole_frames_go():
    ids = PROCESSOR.build_prompt(PROCESSOR.encode(noise(1, 80)))[:, 1:-1]
    expected = PROCESSOR.decode_codes(PROCESSOR.encode(noise(1, 80))[..., :4])[0]
    for length in (12, 13, 14):
        np.testing.assert_array_equal(PROCESSOR.decode(ids[0, :length]), expected)
    assert PROCESSOR.decode(ids[:, :2])[0].shape == (0,)


def test_waveforms_are_saved_as_audio_files(tmp_path):
    waveform = noise(2, 80)
    PROCESSOR.save_audio(waveform, tmp_path / "clean.wav")
    PROCESSOR.save_audio([waveform[0], waveform[1]], [tmp_path / "a.flac", tmp_path / "b.wav"], sampling_rate=16000)
    read, rate = PROCESSOR.load_audio(tmp_path / "clean.wav")
    assert rate == RATE
    np.testing.assert_allclose(read, waveform, rtol=0, atol=1 / 32768)  # a step of 16 bits
    assert PROCESSOR.load_audio(tmp_path / "a.flac")[1] == 16000
    with pytest.raises(ValueError, match="2 waveforms need as many paths"):
        PROCESSOR.save_audio([waveform[0], waveform[1]], tmp_path / "a.wav")


def test_padding_and_return_tensors_mean_what_they_mean_in_the_library():
    recordings = [noise(1, 80), noise(1, 40)]

    def call(**kwargs):
        return PROCESSOR(recordings, sampling_rate=RATE, **kwargs)

    rows = call(return_tensors=None, padding=False)["input_ids"]
    assert [len(row) for row in rows] == [32, 17] and isinstance(rows, list)
    padded = call(padding="longest")["input_ids"]
    assert padded.shape == (2, 32) and padded[1, 15:].tolist() == rows[1]
    assert call(padding="max_length", max_length=40)["attention_mask"].shape == (2, 40)
    assert call(pad_to_multiple_of=10)["input_ids"].shape == (2, 40)
    assert isinstance(call(return_tensors="np")["input_ids"], np.ndarray)
    assert "attention_mask" not in call(return_attention_mask=False)
    assert call(audio_kwargs={"return_tensors": None})["input_ids"][1] == padded[1].tolist()
    with pytest.raises(ValueError, match="truncation would cut recordings short"):
        call(truncation=True)
    with pytest.raises(ValueError, match="no recording in an empty list"):
        PROCESSOR([], sampling_rate=RATE)
    flat = PROCESSOR(noise(1, 80)[0].tolist(), sampling_rate=RATE)["input_ids"]
    assert torch.equal(flat, padded[:1])


def test_decode_refuses_broken_frames_and_foreign_tokens():
    with pytest.raises(ValueError, match="2 tokens is not a multiple of 3 codebooks"):
        PROCESSOR.decode(torch.tensor([[0, 5, 21, 37, 3, 5, 21, 2]]))
    with pytest.raises(ValueError, match="token 4 at position 1 is off the grid"):
        PROCESSOR.decode(torch.tensor([[3, 5, 4, 37, 2]]))


@given(st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_every_length_from_one_sample_makes_whole_frames(samples):
    codes = PROCESSOR.encode(noise(1, samples))
    assert codes.shape == (1, 3, -(-samples // HOP))
    assert PROCESSOR.decode_codes(codes).shape == (1, codes.shape[2] * HOP)


@pytest.mark.parametrize(
    ("name", "value"), [("num_codebooks", 9), ("codebook_size", 32), ("sampling_rate", 44100), ("hop_length", 512)]
)
def test_a_layout_that_contradicts_its_codec_is_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is {value} in the processor and {getattr(PROCESSOR, name)} in its"):
        DacSeProcessor.from_codec(tiny_codec(), **{name: value})
    PROCESSOR.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(ValueError, match=f"{name} is {value} in the processor"):
        DacSeProcessor.from_pretrained(tmp_path)


def test_a_saved_processor_is_one_directory_without_foreign_paths(tmp_path):
    processor = DacSeProcessor.from_codec(tiny_codec(), first_code_id=7)
    files = processor.save_pretrained(tmp_path / "saved")
    assert [Path(file).name for file in files] == ["processor_config.json"]
    settings = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert settings["first_code_id"] == 7 and settings["hop_length"] == HOP
    assert "audio_tokenizer" not in settings and str(tmp_path) not in json.dumps(settings)
    written = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*.*")}
    audio = ("audio", "audio_arrays", "audio_containers", "audio_decoder", "audio_parts")
    code = {f"{name}_dacse.py" for name in (*audio, "codec", "codes", "descript", "processing")}
    assert written == code | {
        "processor_config.json",
        "audio_tokenizer/config.json",
        "audio_tokenizer/model.safetensors",
    }
    (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = DacSeProcessor.from_pretrained(tmp_path / "moved")
    assert loaded.to_dict().items() <= settings.items() and not loaded.audio_tokenizer.training
    assert torch.equal(
        loaded(noise(1, 100), sampling_rate=RATE).input_ids, processor(noise(1, 100), sampling_rate=RATE).input_ids
    )


def test_saving_copies_no_weights_in_memory_and_changes_nothing(tmp_path, monkeypatch):
    processor = DacSeProcessor.from_codec(tiny_codec())
    codec = processor.audio_tokenizer
    monkeypatch.setattr(type(codec), "__deepcopy__", lambda *args: pytest.fail("weights copied"), raising=False)
    processor.save_pretrained(tmp_path)
    assert processor.audio_tokenizer is codec


def test_the_codec_stays_in_float32_and_its_weights_are_those_given(tmp_path):
    DacSeProcessor.from_codec(tiny_codec()).save_pretrained(tmp_path)
    loaded = DacSeProcessor.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.audio_tokenizer.dtype == torch.float32
    half = tiny_codec().half()
    assert DacSeProcessor.from_codec(half).audio_tokenizer.dtype == torch.float32 and half.dtype == torch.float16
    whole = tiny_codec()
    assert DacSeProcessor.from_codec(whole).audio_tokenizer is whole
    weights = load_file(tmp_path / "audio_tokenizer" / "model.safetensors")
    for name, value in tiny_codec().state_dict().items():
        assert torch.equal(weights[name], value)
    tiny_codec(seed=1).save_pretrained(tmp_path / "other")
    other = DacSeProcessor.from_codec(tmp_path / "other")
    assert torch.equal(other.audio_tokenizer.encoder.conv1.weight, tiny_codec(seed=1).encoder.conv1.weight)


def test_a_descript_checkpoint_becomes_a_processor():
    processor = DacSeProcessor.from_descript(GOLDENS / "descript_weights.pth")
    golden = load_file(GOLDENS / "descript_golden.safetensors")
    assert processor.frame_rate == 8000 / 8
    assert torch.equal(processor.encode(golden["waveform"].numpy()), golden["codes"])


STRANGER = """
import sys
for room in ("processing_dacse", "modeling_dacse", "pipeline_dacse", "dacse"):
    sys.modules[room] = None  # as if it were not installed
import numpy as np
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
ids = processor(np.load(sys.argv[2]), sampling_rate=processor.sampling_rate).input_ids
np.savez(sys.argv[3], ids=ids, waveform=processor.decode(ids[:, 1:-1])[0])
"""


def test_a_recording_of_less_than_a_sample_is_refused():
    processor = DacSeProcessor(tiny_codec())
    with pytest.raises(ValueError, match="shorter than one sample at 8000 Hz"):
        processor(np.zeros(1, np.float32), sampling_rate=96000)


def test_a_process_without_the_package_loads_it_by_its_own_code(tmp_path):
    PROCESSOR.save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "noisy.npy", noise(1, 100))
    paths = [str(tmp_path / name) for name in ("saved", "noisy.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", STRANGER, *paths], check=True, cwd=tmp_path, capture_output=True)
    out, ids = np.load(tmp_path / "out.npz"), PROCESSOR(noise(1, 100), sampling_rate=RATE).input_ids
    np.testing.assert_array_equal(out["ids"], ids)
    np.testing.assert_array_equal(out["waveform"], PROCESSOR.decode(ids[:, 1:-1])[0])
