"""The pipeline: any length, rate and kind of input; batches, streams, threads, regions, strength, clear errors."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import GenerationConfig
from transformers.pipelines.pt_utils import KeyDataset

from pipeline_dacse import AudioEnhancementPipeline
from pipeline_dacse.levels_dacse import keep_recording
from pipeline_dacse.options_dacse import EnhanceOptions
from pipeline_dacse.recording_dacse import Recording
from tests.test_windows import spans
from tests.tiny import tiny_model, tiny_pipeline

RATE = 8000  # of the tiny codec, 8 samples a frame


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


@pytest.fixture(scope="module")
def enhance():
    return tiny_pipeline()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    samples=st.one_of(st.integers(1, 20), st.integers(1, 250)),
    rate=st.sampled_from([8000, 11025, 44100, 192000]),
    output_rate=st.sampled_from([None, "input", 16000]),
    channels=st.sampled_from([1, 2, 6]),
    keep=st.booleans(),
)
def test_output_has_exactly_the_input_s_length_and_channels(enhance, samples, rate, output_rate, channels, keep):
    audio = {
        "array": noise(samples, channels).T if samples < channels else noise(samples, channels),
        "sampling_rate": rate,
    }
    samples, channels = max(samples, channels), min(samples, channels)  # the shorter axis is the channels
    out = enhance(audio, output_sampling_rate=output_rate, keep_recording=keep, batch_size=16)
    expected_rate = {None: RATE, "input": rate}.get(output_rate, output_rate)
    expected = round(samples * expected_rate / rate)
    assert out["sampling_rate"] == expected_rate
    assert out["audio"].shape == ((expected,) if channels == 1 else (channels, expected))
    assert out["audio"].dtype == np.float32 and np.isfinite(out["audio"]).all()


@pytest.mark.parametrize("chosen", [False, True])
def test_a_model_says_whether_codes_of_the_least_risk_are_taken(chosen):
    enhance, waveform = tiny_pipeline(), noise(60)
    enhance.processor.minimum_risk = chosen
    ids = enhance.processor(waveform, sampling_rate=RATE)["input_ids"]
    risk = enhance.model.risk_processor(enhance.processor.code_vectors)
    likeliest, safest = (
        enhance.processor.decode(enhance.model.generate(ids, logits_processor=processors))[0][:60]
        for processors in ([], [risk])
    )
    assert not np.array_equal(likeliest, safest)

    def run(**parameters):
        return enhance(waveform, sampling_rate=RATE, **parameters)["audio"]

    np.testing.assert_array_equal(run(), safest if chosen else likeliest)
    np.testing.assert_array_equal(run(minimum_risk=True), safest)
    np.testing.assert_array_equal(run(minimum_risk=False), likeliest)
    sampled = run(do_sample=True, seed=1)
    enhance.processor.minimum_risk = not chosen
    np.testing.assert_array_equal(run(do_sample=True, seed=1), sampled)
    sampling = AudioEnhancementPipeline(model=enhance.model, processor=enhance.processor, do_sample=True)
    np.testing.assert_array_equal(sampling(waveform, sampling_rate=RATE, seed=1)["audio"], sampled)
    assert run(num_beams=2).shape == (60,)
    with pytest.raises(ValueError, match="minimum_risk is for greedy decoding"):
        run(minimum_risk=True, do_sample=True)


def test_the_result_is_that_of_a_naive_loop_over_windows(enhance):
    waveform, processor = noise(200, channels=2), enhance.processor
    codes = processor.encode(waveform)
    joined = []
    for span in spans(25, 8, 2):
        clean = []
        for channel in codes:
            prompt = processor.build_prompt(channel[None, :, span.start : span.stop])
            clean.append(processor.clean_codes(enhance.model.generate(prompt)[0])[0])
        joined.append(torch.stack(clean)[..., span.first - span.start : span.last - span.start])
    expected = processor.decode_codes(torch.cat(joined, dim=-1))
    out = enhance(waveform, sampling_rate=RATE, window_seconds=0.008, overlap_seconds=0.002, batch_size=3)
    np.testing.assert_array_equal(out["audio"], expected)


def copying_pipeline(monkeypatch) -> AudioEnhancementPipeline:
    """One whose model answers with the noisy codes."""
    enhance = tiny_pipeline()
    eos = torch.tensor([[enhance.processor.eos_token_id]])
    monkeypatch.setattr(
        enhance.model,
        "generate",
        lambda input_ids, **_: torch.cat([input_ids, input_ids[:, 1:-1], eos.expand(len(input_ids), 1)], 1),
    )
    return enhance


def test_a_model_that_copies_gives_the_codec_s_own_reconstruction(monkeypatch):
    # so the pipeline adds nothing of its own: no change of level, no delay, no seam
    enhance = copying_pipeline(monkeypatch)
    waveform = noise(400, channels=2)
    out = enhance(waveform, sampling_rate=RATE)["audio"]
    np.testing.assert_array_equal(out, enhance.processor.decode_codes(enhance.processor.encode(waveform)))


@pytest.mark.parametrize("chosen", [False, True])
def test_a_model_says_whether_the_recording_is_kept(chosen):
    enhance, waveform = tiny_pipeline(), noise(304, channels=2)  # whole frames
    enhance.processor.keep_recording = chosen

    def run(**parameters):
        return enhance(waveform, sampling_rate=RATE, **parameters)["audio"]

    processor, noisy = enhance.processor, enhance.processor.encode(waveform)
    generated = run(keep_recording=False)
    sounds = np.stack([waveform, generated, processor.decode_codes(noisy)])
    expected = np.concatenate(list(keep_recording([sounds], RATE)), axis=1)
    kept = run(keep_recording=True)
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-6)
    assert not np.allclose(kept, generated, atol=1e-2)
    np.testing.assert_array_equal(run(), kept if chosen else generated)


def test_a_model_that_copies_gives_the_recording_back_where_it_is_kept(monkeypatch):
    enhance = copying_pipeline(monkeypatch)
    waveform = noise(403, channels=2)
    out = enhance(waveform, sampling_rate=RATE, keep_recording=True)["audio"]
    np.testing.assert_allclose(out, waveform, rtol=0, atol=1e-6)


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
    "parameters",
    [
        {},
        {"output_sampling_rate": "input", "strength": 0.5, "regions": [(0, 0.01)]},
        {"output_sampling_rate": "input", "strength": 0.5, "regions": [(0, 0.01)], "keep_recording": True},
    ],
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
    for recording, pieces in enhance.stream_many([good, bad, "missing.wav", Crashing(), good], batch_size=8):
        if recording is good:
            np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1)[0], expected)
            seen.append("enhanced")
        else:
            with pytest.raises((ValueError, OSError, RuntimeError)) as error:
                list(pieces)
            seen.append(error.type.__name__)
    assert seen == ["enhanced", "ValueError", "FileNotFoundError", "RuntimeError", "enhanced"]


class Crashing:
    def read(self, size=-1):
        raise RuntimeError("decoder crashed")


def test_an_item_that_fails_raises_after_the_others_are_done_or_in_its_turn(enhance):
    good, done = {"array": noise(90), "sampling_rate": RATE}, []
    recordings = [good, "missing.wav", good]
    with pytest.raises(FileNotFoundError, match="recording 2 of 3: .*missing.wav"):
        enhance(recordings, batch_size=1, progress=lambda *frames: done.append(frames))
    assert done == [(6, 12), (12, 12)] * 2
    outputs = enhance(recording for recording in recordings)
    assert next(outputs)["audio"].shape == (90,)
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        next(outputs)
    assert next(outputs)["audio"].shape == (90,)
    with pytest.raises(StopIteration):
        next(outputs)


def test_what_nobody_waits_for_is_not_generated(enhance, monkeypatch):
    rows, answer = [], enhance.enhancer.answer
    monkeypatch.setattr(
        enhance.enhancer, "answer", lambda windows, *rest: (rows.append(len(windows)), answer(windows, *rest))[1]
    )
    long, short = ({"array": noise(samples), "sampling_rate": RATE} for samples in (4000, 60))
    recordings = enhance.stream_many([long, short], batch_size=4)
    _, pieces = next(recordings)
    next(pieces)
    pieces.close()
    begun = sum(rows)
    assert len(list(next(recordings)[1])) > 0
    assert sum(rows) <= begun + 4


def test_an_error_of_a_batch_is_raised_by_its_recordings_and_the_others_go_on(enhance, monkeypatch):
    generate, calls = enhance.model.generate, []

    def fail_once(**arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return generate(**arguments)

    monkeypatch.setattr(enhance.model, "generate", fail_once)
    good = {"array": noise(60), "sampling_rate": RATE}
    recordings = enhance.stream_many([good, good], batch_size=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(next(recordings)[1])
    assert len(list(next(recordings)[1])) > 0


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
    options = EnhanceOptions(regions=[(0.006, 0.012)], sampling_rate=RATE)
    windows = list(Recording(enhance.processor, noise(200), options, 10).windows())
    rows = enhance.enhancer.answer(windows, None, options, enhance.enhancer.check(options))
    assert any(window.is_generated for window in windows) and not all(window.is_generated for window in windows)
    for row in rows:
        held = ~row.window.free
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


def test_sampling_does_not_depend_on_the_batch_and_no_two_windows_draw_the_same(enhance):
    channel = noise(250)
    twins = {"array": np.concatenate([channel, channel]), "sampling_rate": RATE}
    recordings = [twins, twins, {"array": noise(30), "sampling_rate": RATE}]
    mode = {"do_sample": True, "temperature": 3.0, "seed": 1}
    expected = enhance(recordings, batch_size=1, **mode)
    for batch_size in (2, 5, 64):
        for out, alone in zip(enhance(recordings, batch_size=batch_size, **mode), expected, strict=True):
            np.testing.assert_array_equal(out["audio"], alone["audio"])
    np.testing.assert_array_equal(enhance(twins, **mode)["audio"], expected[0]["audio"])
    channels = [*expected[0]["audio"], *expected[1]["audio"]]
    assert all((one != other).mean() > 0.5 for one, other in itertools.combinations(channels, 2))
    assert (enhance(twins, **mode | {"seed": None})["audio"] != expected[0]["audio"]).any()


def test_threads_get_what_they_would_get_alone():
    enhance = tiny_pipeline()
    for name in ("one", "other"):
        with torch.random.fork_rng():
            torch.manual_seed(len(name))
            lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
            enhance.model.add_adapter(lora, adapter_name=name)
    calls = [
        {"adapter": adapter, "do_sample": sample, "seed": seed, "batch_size": 1 + seed % 3}
        for seed, (adapter, sample) in enumerate(itertools.product([None, "one", "other"], [False, True], repeat=1))
    ] * 3
    audio = {"array": noise(250), "sampling_rate": RATE}
    alone = [enhance(audio, **call)["audio"] for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: enhance(audio, **call)["audio"], calls))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len({audio.tobytes() for audio in alone}) == 6


@pytest.mark.parametrize(
    "parameters",
    [{"max_new_tokens": 3}, {"max_length": 99}, {"num_return_sequences": 2}, {"return_dict_in_generate": True}],
    ids=str,
)
def test_parameters_that_would_cut_or_multiply_windows_are_refused(enhance, parameters):
    with pytest.raises(ValueError, match=f"{next(iter(parameters))} is not for enhancement"):
        enhance(noise(60), sampling_rate=RATE, **parameters)


@pytest.mark.parametrize("limit", [{"generation_config": GenerationConfig(max_new_tokens=7)}, {"max_time": 0.0}])
def test_what_a_stopping_criterion_leaves_out_stays_as_it_was(enhance, caplog, limit):
    waveform = noise(80)
    out = enhance(waveform, sampling_rate=RATE, return_confidence=True, **limit)
    codes = enhance.processor.encode(waveform)
    ids = enhance.model.generate(enhance.processor.build_prompt(codes))
    frames = 0 if "max_time" in limit else 2  # of three tokens each
    expected = torch.cat([enhance.processor.clean_codes(ids[0])[..., :frames], codes[..., frames:]], dim=-1)
    np.testing.assert_array_equal(out["audio"], enhance.processor.decode_codes(expected)[0])
    assert np.isnan(out["confidence"][frames:]).all() and not np.isnan(out["confidence"][:frames]).any()
    assert f"stopped {10 - frames} frames before its end" in caplog.text


def test_generation_parameters_of_a_call_and_of_the_pipeline_reach_generate(enhance):
    audio = {"array": noise(60), "sampling_rate": RATE}
    greedy = enhance(audio)["audio"]
    np.testing.assert_array_equal(enhance(audio, do_sample=True, top_k=1)["audio"], greedy)
    np.testing.assert_array_equal(tiny_pipeline(do_sample=True, top_k=1)(audio)["audio"], greedy)
    np.testing.assert_array_equal(enhance(audio, generate_kwargs={"do_sample": True, "top_k": 1})["audio"], greedy)
    assert enhance(audio, num_beams=3)["audio"].shape == greedy.shape
    with pytest.raises(ValueError, match="'windw_seconds' is neither .*; did you mean 'window_seconds'"):
        enhance(audio, windw_seconds=1.0)


def test_assistants_of_a_call_and_of_the_pipeline_give_the_greedy_audio(enhance):
    audio, assistant = {"array": noise(200), "sampling_rate": RATE}, tiny_model(seed=1)
    greedy = enhance(audio)["audio"]
    np.testing.assert_array_equal(enhance(audio, assistant_model=assistant, batch_size=8)["audio"], greedy)
    np.testing.assert_array_equal(enhance(audio, prompt_lookup_num_tokens=3)["audio"], greedy)
    np.testing.assert_array_equal(tiny_pipeline(assistant_model=assistant)(audio)["audio"], greedy)


def test_progress_counts_the_frames_of_each_recording(enhance):
    calls = []
    enhance(noise(200), sampling_rate=RATE, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (25, 25) and calls == sorted(calls) and len(calls) == len(spans(25, 10, 2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window_seconds": 1.0}, r"window_seconds is 1\.0 \(1000 frames\).*0\.01 s"),
        ({"overlap_seconds": 0.5}, r"overlap_seconds is 0\.5"),
        ({"strength": 1.5}, r"strength is 1\.5; give a number from 0 \(the input\) to 1"),
        ({"output_sampling_rate": 0}, "output_sampling_rate is 0"),
        ({"regions": [(2, 1)]}, r"region \(2, 1\)"),
        ({"regions": [(0, 1), (3, 4)]}, r"region \(3\.0, 4\.0\) begins after the end .* lasts 0\.0075 s"),
        ({"adapter": "nothing"}, "adapter 'nothing' is unknown; the model has none"),
    ],
)
def test_parameters_out_of_range_say_which_and_why(enhance, parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        enhance(noise(60), sampling_rate=RATE, **parameters)
    assert "\n" not in str(error.value)


class Unread:
    """A recording that may not be touched."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("audio was read")


@pytest.mark.parametrize(
    "wrong",
    [
        {"early_stopping": "never!"},
        {"bad_words_ids": 3},
        {"suppress_tokens": "a"},
        {"sequence_bias": 3},
        {"eos_token_id": 7},
        {"guidance_scale": "x"},
        {"watermarking_config": 5},
    ],
    ids=str,
)
def test_what_generate_does_not_take_is_said_before_audio_is_read(enhance, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        enhance(Unread(), **wrong)


def test_a_model_that_knows_one_window_length_gets_short_recordings_completed_with_silence():
    only, usual = tiny_pipeline(), tiny_pipeline()
    only.processor.window_frames = 6
    for samples in (1, 40, 48, 200):
        out = only(noise(samples)[0], sampling_rate=RATE, return_confidence=True)
        assert len(out["audio"]) == samples
        assert len(out["confidence"]) == -(-samples // 8)
    options = EnhanceOptions(sampling_rate=RATE)
    (window,) = Recording(only.processor, noise(30)[0], options, 10).windows()
    (completed,) = Recording(usual.processor, np.pad(noise(30)[0], (0, 18)), options, 10).windows()
    assert torch.equal(window.codes, completed.codes) and window.codes.shape[1] == 6
    with pytest.raises(ValueError, match="trained on windows of 0.006 s"):
        only(noise(40)[0], sampling_rate=RATE, window_seconds=0.005)


@pytest.mark.parametrize("frames", [4, 25], ids=["shorter than a window", "three windows that overlap"])
def test_nothing_is_generated_after_the_frames_a_window_keeps(frames):
    enhance, calls = tiny_pipeline(), []
    enhance.processor.window_frames = 10
    generate = enhance.model.generate
    enhance.model.generate = lambda **arguments: (calls.append(arguments), generate(**arguments))[1]
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, frames * 8).astype(np.float32)
    out = enhance(waveform, sampling_rate=8000, overlap_seconds=0.002, return_confidence=True)
    assert len(out["audio"]) == len(waveform) and out["confidence"].shape == (frames,)
    assert (out["confidence"] < 1).all()
    expected = spans(frames, 10, 2, whole=True)
    (forced,) = [call["forced_ids"] for call in calls]
    assert (forced == -1).sum(1).tolist() == [(span.last - span.start) * 3 for span in expected]


def test_a_pipeline_that_has_used_an_adapter_is_not_saved_without_its_own_weights(tmp_path):
    enhance = tiny_pipeline()
    enhance.model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"holds adapters \(default\)"):
        enhance.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
