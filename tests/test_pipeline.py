"""The pipeline: any length, rate and kind of input; batches, streams, regions, strength, adapters, clear errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import BertConfig, BertModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import dacse
from modeling_dacse import DacSeConfig, DacSeForEnhancement
from pipeline_dacse.companions_dacse import default_batch_size
from pipeline_dacse.windows_dacse import split_windows
from tests.loopback_hub import LoopbackHub
from tests.tiny import tiny_codec, tiny_model, tiny_pipeline

RATE = 8000  # of the tiny codec, 8 samples a frame


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


@pytest.fixture(scope="module")
def enhance():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with two adapters in its `adapters/` folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    for seed, name in enumerate(("denoise", "dereverb")):
        model = tiny_model()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        model.save_pretrained(folder / "adapters" / name)
    return folder


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    samples=st.one_of(st.integers(1, 20), st.integers(1, 250)),
    rate=st.sampled_from([8000, 11025, 44100, 192000]),
    output_rate=st.sampled_from([None, "input", 16000]),
    channels=st.sampled_from([1, 2, 6]),
)
def test_output_has_exactly_the_input_s_length_and_channels(enhance, samples, rate, output_rate, channels):
    audio = {
        "array": noise(samples, channels).T if samples < channels else noise(samples, channels),
        "sampling_rate": rate,
    }
    samples, channels = max(samples, channels), min(samples, channels)  # the shorter axis is the channels
    out = enhance(audio, output_sampling_rate=output_rate, batch_size=16)
    expected_rate = {None: RATE, "input": rate}.get(output_rate, output_rate)
    expected = round(samples * expected_rate / rate)
    assert out["sampling_rate"] == expected_rate
    assert out["audio"].shape == ((expected,) if channels == 1 else (channels, expected))
    assert out["audio"].dtype == np.float32 and np.isfinite(out["audio"]).all()


def test_the_result_is_that_of_a_naive_loop_over_windows(enhance):
    waveform, processor = noise(200, channels=2), enhance.processor
    codes = processor.encode(waveform)
    joined = []
    for span in split_windows(25, 8, 2):
        clean = []
        for channel in codes:
            prompt = processor.build_prompt(channel[None, :, span.start : span.stop])
            clean.append(processor.clean_codes(enhance.model.generate(prompt)[0])[0])
        joined.append(torch.stack(clean)[..., span.first - span.start : span.last - span.start])
    expected = processor.decode_codes(torch.cat(joined, dim=-1))
    out = enhance(waveform, sampling_rate=RATE, window_seconds=0.008, overlap_seconds=0.002, batch_size=3)
    np.testing.assert_array_equal(out["audio"], expected)


def test_a_model_that_copies_gives_the_codec_s_own_reconstruction(monkeypatch):
    # so the pipeline adds nothing of its own: no change of level, no delay, no seam
    enhance = tiny_pipeline()
    monkeypatch.setattr(
        enhance.model, "generate", lambda input_ids, **_: torch.cat([input_ids, input_ids[:, 1:-1]], 1)
    )
    waveform = noise(400, channels=2)
    out = enhance(waveform, sampling_rate=RATE)["audio"]
    np.testing.assert_array_equal(out, enhance.processor.decode_codes(enhance.processor.encode(waveform)))


def test_the_codec_stays_in_float32_beside_a_model_in_bfloat16(folder):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu", dtype="bfloat16")
    assert enhance.model.dtype == torch.bfloat16 and enhance.processor.audio_tokenizer.dtype == torch.float32
    assert enhance(noise(60), sampling_rate=RATE)["audio"].dtype == np.float32


def test_batches_of_any_size_give_the_same_audio_in_the_order_of_the_inputs(enhance):
    recordings = [
        {"array": noise(n, channels, n), "sampling_rate": RATE} for n, channels in ((170, 1), (90, 2), (8, 1))
    ]
    one_by_one = [enhance(recording)["audio"] for recording in recordings]
    for batch_size in (2, 16):
        together = [out["audio"] for out in enhance(recordings, batch_size=batch_size)]
        for expected, audio in zip(one_by_one, together, strict=True):
            np.testing.assert_array_equal(audio, expected)


def test_generators_and_datasets_stream(enhance):
    recordings = [{"array": noise(n), "sampling_rate": RATE} for n in (60, 90)]
    read = []

    def generator():
        for recording in recordings:
            read.append(recording)
            yield recording

    outputs = enhance(generator(), batch_size=1)
    first = next(iter(outputs))
    assert len(read) == 1 and first["audio"].shape == (60,)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(recordings)

        def __getitem__(self, index):
            return {"audio": recordings[index]}

    assert [out["audio"].shape for out in enhance(KeyDataset(Rows(), "audio"))] == [(60,), (90,)]
    assert enhance([]) == []


@pytest.mark.parametrize(
    "parameters", [{}, {"output_sampling_rate": "input", "strength": 0.5, "regions": [(0, 0.01)]}]
)
def test_a_stream_is_the_whole_call_to_the_last_bit(enhance, tmp_path, parameters):
    path = tmp_path / "noisy.wav"
    soundfile.write(path, noise(600, channels=2).T, 16000, subtype="FLOAT")
    whole = enhance(str(path), **parameters)["audio"]
    pieces = list(enhance.stream(path, batch_size=5, **parameters))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    from_memory = enhance({"array": noise(600, channels=2), "sampling_rate": 16000}, **parameters)["audio"]
    np.testing.assert_array_equal(from_memory, whole)


def test_a_recording_that_fails_leaves_the_others_of_a_stream_alone(enhance):
    good = {"array": noise(90), "sampling_rate": RATE}
    bad = {"array": noise(90) * np.nan, "sampling_rate": RATE}
    expected, seen = enhance(good)["audio"], []
    for recording, pieces in enhance.stream_many([good, bad, "missing.wav", good], batch_size=8):
        if recording is good:
            np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1)[0], expected)
            seen.append("enhanced")
        else:
            with pytest.raises((ValueError, OSError)) as error:
                list(pieces)
            seen.append(error.type.__name__)
    assert seen == ["enhanced", "ValueError", "FileNotFoundError", "enhanced"]


def test_silence_in_silence_out(enhance):
    out = enhance({"array": np.zeros(500, dtype=np.float32), "sampling_rate": 16000}, return_confidence=True)
    assert not out["audio"].any() and (out["confidence"] == 1).all()
    one_sided = np.concatenate([noise(200), np.zeros((1, 200), dtype=np.float32)])
    out = enhance(one_sided, sampling_rate=RATE)["audio"]
    assert out[0].any() and not out[1].any()


def test_a_silent_gap_inside_a_window_is_the_model_s_to_fill(enhance):
    gap = noise(80)
    gap[:, 30:60] = 0
    assert enhance(gap, sampling_rate=RATE)["audio"][30:60].all()


def test_strength_mixes_input_and_enhanced(enhance):
    waveform = noise(90)
    wet = enhance(waveform, sampling_rate=RATE)["audio"]
    dry = enhance(waveform, sampling_rate=RATE, strength=0.0)["audio"]
    half = enhance(waveform, sampling_rate=RATE, strength=0.5)["audio"]
    np.testing.assert_array_equal(dry, waveform[0])
    np.testing.assert_allclose(half, (wet + dry) / 2, rtol=0, atol=1e-7)  # one rounding of float32


def test_outside_the_regions_the_input_s_own_samples_come_back(enhance):
    waveform, regions = noise(400), [(0.0075, 0.03), (0.04, 0.05)]
    out = enhance(waveform, sampling_rate=RATE, regions=regions, output_sampling_rate="input")["audio"]
    seconds = np.arange(400) / RATE
    inside = np.logical_or.reduce([(seconds > start) & (seconds < stop) for start, stop in regions])
    np.testing.assert_array_equal(out[~inside], waveform[0, ~inside])
    assert (out[inside] != waveform[0, inside]).all()


def test_outside_the_regions_the_model_is_held_to_the_noisy_codes(enhance):
    rows = [
        enhance.forward(item)["row"]
        for item in enhance.preprocess(noise(200), sampling_rate=RATE, regions=[(0.006, 0.012)])
    ]
    assert any(row.window.is_generated for row in rows) and not all(row.window.is_generated for row in rows)
    for row in rows:
        held = torch.from_numpy(~row.window.free)
        torch.testing.assert_close(row.codes[:, held], row.window.codes[:, held])


def test_confidence_is_the_mean_probability_of_a_frame_s_tokens(enhance):
    waveform = noise(80)
    out = enhance(waveform, sampling_rate=RATE, return_confidence=True)
    prompt = enhance.processor.build_prompt(enhance.processor.encode(waveform))
    ids = enhance.model.generate(prompt)
    logits = enhance.model(ids).logits[0, prompt.shape[1] - 1 : -2]
    clean, layout = ids[0, prompt.shape[1] : -1], enhance.model.config
    expected = []
    for index, (row, token) in enumerate(zip(logits, clean, strict=True)):
        first = layout.first_code_id + index % layout.num_codebooks * layout.codebook_size
        expected.append(row[first : first + layout.codebook_size].softmax(0)[token - first].item())
    expected = np.reshape(expected, (-1, layout.num_codebooks)).mean(axis=1)
    np.testing.assert_allclose(out["confidence"], expected, rtol=1e-5)
    partly = enhance(waveform, sampling_rate=RATE, return_confidence=True, regions=[(0, 0.002)])["confidence"]
    assert (partly[:2] < 1).all() and (partly[2:] == 1).all()


def test_a_stream_s_confidence_is_that_of_the_whole_call(enhance, tmp_path):
    path = tmp_path / "noisy.wav"
    soundfile.write(path, noise(600, channels=2).T, 16000, subtype="FLOAT")
    whole = enhance(str(path), return_confidence=True)
    pieces = list(enhance.stream(path, batch_size=5, return_confidence=True))
    for name in ("audio", "confidence"):
        joined = np.concatenate([piece[name] for piece in pieces], axis=1)
        np.testing.assert_allclose(joined, whole[name], rtol=1e-5)


def test_a_seed_makes_sampling_reproducible_and_leaves_torch_s_state_alone(enhance):
    audio = {"array": noise(90), "sampling_rate": RATE}
    state = torch.get_rng_state()
    first, again, other = (enhance(audio, do_sample=True, seed=seed)["audio"] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_generation_parameters_of_a_call_and_of_the_pipeline_reach_generate(enhance):
    audio = {"array": noise(60), "sampling_rate": RATE}
    greedy = enhance(audio)["audio"]
    np.testing.assert_array_equal(enhance(audio, do_sample=True, top_k=1)["audio"], greedy)
    np.testing.assert_array_equal(tiny_pipeline(do_sample=True, top_k=1)(audio)["audio"], greedy)
    assert enhance(audio, num_beams=3)["audio"].shape == greedy.shape
    with pytest.raises(ValueError, match="windw_seconds"):
        enhance(audio, windw_seconds=1.0)


def test_progress_counts_the_frames_of_each_recording(enhance):
    calls = []
    enhance(noise(200), sampling_rate=RATE, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (25, 25) and calls == sorted(calls) and len(calls) == len(list(split_windows(25, 10, 2)))


def test_adapters_are_switched_per_call_and_the_base_model_comes_back(folder):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    audio = {"array": noise(60), "sampling_rate": RATE}
    base = enhance(audio)["audio"]
    denoised, dereverbed = (enhance(audio, adapter=name)["audio"] for name in ("denoise", "dereverb"))
    assert (denoised != base).any() and (dereverbed != base).any() and (denoised != dereverbed).any()
    np.testing.assert_array_equal(enhance(audio, adapter=None)["audio"], base)
    np.testing.assert_array_equal(enhance(audio, adapter=str(folder / "adapters" / "denoise"))["audio"], denoised)
    for name, expected in (("denoise", denoised), ("dereverb", dereverbed)):  # as they were, after a third
        np.testing.assert_array_equal(enhance(audio, adapter=name)["audio"], expected)
    with pytest.raises(ValueError, match=r"adapter 'nothing' is unknown; .* has .*denoise, dereverb"):
        enhance(audio, adapter="nothing")


FROM_THE_HUB = """
import numpy, sys
import dacse
from transformers import pipeline

enhance = pipeline("audio-enhancement", model="user/model", device="cpu")
for name in ("denoise", "user/lora"):
    numpy.save(name.replace("/", "_"), enhance(numpy.load("noisy.npy"), sampling_rate=8000, adapter=name)["audio"])
try:
    enhance(numpy.load("noisy.npy"), sampling_rate=8000, adapter="other")
except ValueError as error:
    print(error)
"""


def test_adapters_come_from_the_hub_too(folder, tmp_path):
    def files(place):
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    np.save(tmp_path / "noisy.npy", noise(60))
    with LoopbackHub() as hub:
        hub.add("user/model", files(folder))
        hub.add("user/lora", files(folder / "adapters" / "denoise"))
        environment = os.environ | hub.environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", FROM_THE_HUB]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    expected = pipeline("audio-enhancement", model=str(folder), device="cpu")(
        noise(60), sampling_rate=RATE, adapter="denoise"
    )
    for name in ("denoise", "user_lora"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected["audio"])
    assert "'other' is unknown; user/model has denoise, dereverb, user_lora; or" in process.stdout


def test_an_adapter_of_another_shape_is_refused(folder, tmp_path):
    enhance = pipeline("audio-enhancement", model=str(folder), device="cpu")
    config = json.loads((folder / "adapters" / "denoise" / "adapter_config.json").read_text())
    strange = Path(shutil.copytree(folder / "adapters" / "denoise", tmp_path / "strange"))
    (strange / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "k_proj"]}))
    with pytest.raises(ValueError, match="does not fit .* weights such as"):
        enhance(noise(60), sampling_rate=RATE, adapter=str(strange))
    assert enhance(noise(60), sampling_rate=RATE, adapter="denoise")["audio"].shape == (60,)


def test_a_pipeline_made_from_an_adapter_uses_it_until_told_not_to(folder, tmp_path):
    adapter = Path(shutil.copytree(folder / "adapters" / "denoise", tmp_path / "mine"))
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    enhance = pipeline("audio-enhancement", model=str(adapter), device="cpu")
    audio = {"array": noise(60), "sampling_rate": RATE}
    assert (enhance(audio)["audio"] != enhance(audio, adapter=None)["audio"]).any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window_seconds": 1.0}, r"window_seconds is 1\.0 \(1000 frames\).*0\.01 s"),
        ({"overlap_seconds": 0.5}, r"overlap_seconds is 0\.5"),
        ({"strength": 1.5}, r"strength is 1\.5"),
        ({"output_sampling_rate": 0}, "output_sampling_rate is 0"),
        ({"regions": [(2, 1)]}, r"region \(2, 1\)"),
        ({"adapter": "nothing"}, "adapter 'nothing' is unknown; the model has none"),
    ],
)
def test_parameters_out_of_range_say_which_and_why(enhance, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        enhance(noise(60), sampling_rate=RATE, **parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"device": "quantum"}, "device 'quantum' is unknown"),
        ({"dtype": "float17"}, "dtype 'float17' is unknown"),
        pytest.param(
            {"device": "cuda"},
            "device 'cuda' is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here"),
        ),
        pytest.param(
            {"device": 0},
            "device 0 is unknown",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is here"),
        ),
    ],
)
def test_a_device_or_dtype_that_is_not_here_is_refused_and_not_replaced(folder, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline("audio-enhancement", model=str(folder), **parameters)
    assert "\n" not in str(error.value)


def test_a_model_and_a_codec_that_do_not_belong_together_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="codebook_size is 16 in the processor and 8 in its codec"):
        pipeline("audio-enhancement", model=str(folder), codec=tiny_codec(codebook_size=8))
    processor = type(tiny_pipeline().processor).from_codec(tiny_codec(), first_code_id=6)
    with pytest.raises(ValueError, match="first_code_id is 5 in the model and 6 in its processor"):
        dacse.AudioEnhancementPipeline(model=tiny_model(), processor=processor)
    with pytest.raises(ValueError, match="descript/dac_44khz has not its 3 codebooks of 16 codes"):
        dacse.AudioEnhancementPipeline(model=tiny_model())
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings_file = copy / "processor_config.json"
    settings_file.write_text(settings_file.read_text().replace('"num_codebooks": 3', '"num_codebooks": 4'))
    with pytest.raises(ValueError, match="num_codebooks is 4 in the processor and 3 in its codec"):
        pipeline("audio-enhancement", model=str(copy))


def test_a_directory_without_weights_or_with_another_architecture_is_named(folder, tmp_path):
    empty = shutil.copytree(folder, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"no file named model.safetensors.* found in directory {empty}"):
        pipeline("audio-enhancement", model=str(empty))
    bert = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert is a bert model of 8 ids; audio-enhancement takes a dacse model"):
        pipeline("audio-enhancement", model=str(tmp_path / "bert"))


def test_a_model_that_knows_one_window_length_gets_short_recordings_completed_with_silence():
    only, usual = tiny_pipeline(), tiny_pipeline()
    only.model.config.window_frames = 6
    for samples in (1, 40, 48, 200):
        out = only(noise(samples)[0], sampling_rate=RATE, return_confidence=True)
        assert len(out["audio"]) == samples
        assert len(out["confidence"]) == -(-samples // 8)
    prompts = [prompt["input_ids"] for prompt in only.preprocess({"array": noise(30)[0], "sampling_rate": RATE})]
    completed = {"array": np.pad(noise(30)[0], (0, 18)), "sampling_rate": RATE}
    assert torch.equal(torch.cat(prompts), next(usual.preprocess(completed))["input_ids"])
    assert {prompt["input_ids"].shape[1] for prompt in only.preprocess(completed)} == {6 * 3 + 2}
    with pytest.raises(ValueError, match="trained on windows of 0.006 s"):
        only(noise(40)[0], sampling_rate=RATE, window_seconds=0.005)


def test_the_batch_size_follows_the_size_of_keys_and_values(caplog):
    with caplog.at_level("INFO", logger="pipeline_dacse"):
        small = tiny_pipeline()
    assert small._batch_size == 32
    assert "32 windows at a time on cpu in torch.float32" in caplog.text
    assert tiny_pipeline(batch_size=3)._batch_size == 3
    large = DacSeConfig()  # 24 layers of 1536: 2.4 GB of keys and values in one window
    with torch.device("meta"):
        assert default_batch_size(DacSeForEnhancement(large)) == 1


def test_nothing_is_generated_behind_the_end_of_a_recording():
    enhance = tiny_pipeline()
    enhance.model.config.window_frames = 10
    lengths, generate = [], enhance.model.generate
    enhance.model.generate = lambda **kwargs: (ids := generate(**kwargs), lengths.append(ids.shape[1]))[0]
    short = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * 8).astype(np.float32)  # 4 of the window's 10 frames
    out = enhance(short, sampling_rate=8000, return_confidence=True)
    assert lengths == [2 + 10 * 3 + 4 * 3]
    assert len(out["audio"]) == 32 and out["confidence"].shape == (4,)
