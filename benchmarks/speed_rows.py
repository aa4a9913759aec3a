"""The rows of the speed table: what is run, against what, and what is wanted. Knows no clock and no table.

Every row is a function of a `Scale` that returns a `Row` of calls which do the same work. Weights are random where
only their size matters.
"""

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from naive import naive_enhance, naive_generate, plain_llama
from transformers import DacConfig, DacModel, pipeline

import dacse
from modeling_dacse.fast.decoding import decode_grid
from pipeline_dacse.device_dacse import is_imitated
from pipeline_dacse.windows_dacse import overlap_frames, split_windows, window_frames
from processing_dacse.codec_dacse import decode_in_pieces, encode_in_pieces

SPEECH = Path(__file__).parents[1] / "examples/audio/inaugural_1961.wav"
FRAME_RATE = 44100 / 512  # of the released grid
SIZES = {
    "14M": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
    "30M": {"hidden_size": 512, "num_hidden_layers": 7, "num_attention_heads": 8, "intermediate_size": 2048},
}


@dataclass(frozen=True)
class Scale:
    """How much of everything: the whole table, or a minute's worth of it."""

    rounds: int
    file_seconds: float
    grid_seconds: float
    window_frames: int
    window_tokens: int
    large_layers: int
    large_tokens: int
    codec_seconds: float


FULL = Scale(
    rounds=3,
    file_seconds=60,
    grid_seconds=9,
    window_frames=345,
    window_tokens=200,
    large_layers=24,
    large_tokens=8,
    codec_seconds=20,
)
QUICK = Scale(
    rounds=1,
    file_seconds=2,
    grid_seconds=2,
    window_frames=40,
    window_tokens=40,
    large_layers=2,
    large_tokens=4,
    codec_seconds=3,
)


@dataclass(frozen=True)
class Row:
    """Calls that are timed in turn: the baseline, ours, and ours in other ways."""

    what: str
    goal: str
    calls: dict[str, Callable[[], object]]
    baseline_share: float = 1.0  # of the work that the baseline does, for it takes every window alike
    audio_seconds: float | None = None  # for a real-time factor
    count: int = 1  # tokens in a call, for a rate
    bytes_read: int = 0  # by a call at least, for a share of the memory limit
    facts: dict[str, object] = field(default_factory=dict)


def speech(seconds: float, rate: int) -> np.ndarray:
    """The example recording, again and again: float32 (sample,)."""
    waveform, own_rate = soundfile.read(SPEECH, dtype="float32")
    waveform = dacse.DacSeProcessor.resample(waveform.T.reshape(-1, len(waveform))[:1], own_rate, rate)[0]
    return np.resize(waveform, round(seconds * rate))


def whole_file(scale: Scale, device: str) -> Row:
    """A recording through the whole pipeline, the embedded model."""
    return file_row(scale.file_seconds, pipeline("audio-enhancement", device=device), "embedded model")


def released_grid_file(scale: Scale, device: str) -> Row:
    """The same with a small model on the released grid, 775 tokens a second, in windows of 2 s; random weights."""
    size = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    model = random_model(size | {"max_position_embeddings": 3 + 2 * 172 * 9}, torch.float32, device)
    codec = {"encoder_hidden_size": 16, "decoder_hidden_size": 256, "downsampling_ratios": [4, 4, 4, 8]}
    codec = DacModel(DacConfig(**codec, n_codebooks=9, sampling_rate=44100)).eval()
    enhance = dacse.AudioEnhancementPipeline(model=model, codec=codec, device=device)
    name = f"{model.num_parameters() / 1e6:.0f} M parameters at 775 tokens a second"
    return file_row(scale.grid_seconds, enhance, name)


def file_row(seconds: float, enhance, name: str) -> Row:
    processor, config, rate = enhance.processor, enhance.model.config, enhance.processor.sampling_rate
    waveform, llama = speech(seconds, rate), plain_llama(enhance.model)
    length = window_frames(None, processor.frame_rate, config.max_frames, processor.window_frames)
    overlap, num_frames = overlap_frames(None, processor.frame_rate, length), -(-len(waveform) // processor.hop_length)
    windows = list(split_windows(lambda stop: min(stop, num_frames), length, overlap))
    first = waveform[: length * processor.hop_length]
    calls = {
        "baseline": lambda: naive_enhance(llama, config, processor, first),
        # as the baseline does; keeping the recording's own sound is work that only one of them has
        "dacse": lambda: enhance(waveform, sampling_rate=rate, keep_recording=False),
    }
    if processor.keep_recording:
        calls["with the recording kept"] = lambda: enhance(waveform, sampling_rate=rate)
    return Row(
        f"{seconds:g} s file, {name}, whole pipeline",
        "8 x, real-time factor < 1",
        calls,
        baseline_share=1 / len(windows),
        audio_seconds=seconds,
        facts={"windows": len(windows), "together": enhance.enhancer.default_batch_size()},
    )


def random_model(size: dict, dtype: torch.dtype, device: str):
    """A released-grid model with random weights."""
    config = dacse.DacSeConfig(**size, attention_dropout=0.0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = dacse.DacSeForEnhancement(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def random_prompt(config, frames: int, rows: int = 1) -> torch.LongTensor:
    codes = torch.randint(config.codebook_size, (rows, frames, config.num_codebooks))
    ids = codes + config.first_code_id + config.codebook_size * torch.arange(config.num_codebooks)
    ends = torch.tensor([[config.bos_token_id, config.start_clean_token_id]]).expand(rows, -1)
    return torch.cat([ends[:, :1], ids.flatten(1), ends[:, 1:]], dim=1)


def bytes_of_tokens(model, prompt: torch.Tensor, tokens: int) -> int:
    """What generating one token after the other must read: layers, a codebook's logits, keys and values so far."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters())
    weights += config.codebook_size * config.hidden_size
    remembered = 2 * len(prompt) * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return model.dtype.itemsize * tokens * (weights + remembered * (prompt.shape[1] + tokens // 2))


def in_int8(model):
    """A copy of a model with matrices of 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return dacse.DacSeForEnhancement.from_pretrained(
            folder, quantization_config=dacse.Int8Config(), dtype=model.dtype
        )


def fast(model, prompt: torch.LongTensor, tokens: int) -> torch.LongTensor:
    """Clean ids by the fast decoder."""
    return model.generate(prompt, max_new_tokens=tokens, custom_generate=decode_grid)


def window(scale: Scale, device: str, name: str) -> Row:
    """One 4 s window of the released grid, alone and whole."""
    model = random_model(SIZES[name], torch.float32, device)
    prompt, llama = random_prompt(model.config, frames=scale.window_frames).to(device), plain_llama(model)
    models, tokens = {"dacse": model}, prompt.shape[1] - 2
    if not is_imitated(torch.bfloat16):
        models["dacse bfloat16"] = copy.deepcopy(model).bfloat16()
    models["dacse int8"] = in_int8(models.get("dacse bfloat16", model))
    generate = {name: partial(fast, one, prompt, tokens) for name, one in models.items()}
    return Row(
        f"4 s window alone, {name} parameters, {tokens} tokens",
        "4 x",
        {"baseline": lambda: naive_generate(llama, model.config, prompt)} | generate,
        count=tokens,
        bytes_read=bytes_of_tokens(model, prompt, tokens),
    )


def large(scale: Scale, device: str) -> Row:
    """The released model's size in bfloat16, batch 1; a short prompt, which a CPU reads at the speed of its sums."""
    model = random_model({"num_hidden_layers": scale.large_layers}, torch.bfloat16, device)
    prompt, llama = random_prompt(model.config, frames=4).to(device), plain_llama(model)
    small = in_int8(model)
    return Row(
        f"1B bfloat16, batch 1, {scale.large_tokens} tokens",
        "2.5 x",
        {
            "baseline": lambda: naive_generate(llama, model.config, prompt, scale.large_tokens),
            "dacse": lambda: fast(model, prompt, scale.large_tokens),
            "dacse int8": lambda: fast(small, prompt, scale.large_tokens),
        },
        count=scale.large_tokens,
        bytes_read=bytes_of_tokens(model, prompt, scale.large_tokens),
    )


def codec(scale: Scale, device: str, released: bool) -> Row:
    """Encoding and decoding a recording in pieces against the whole at once."""
    if released:
        model = DacModel(DacConfig(downsampling_ratios=[2, 4, 8, 8], n_codebooks=9, sampling_rate=44100))
        model.eval().to(device)  # the shape of descript/dac_44khz
    else:
        model = pipeline("audio-enhancement", device=device).processor.audio_tokenizer
    seconds = scale.codec_seconds / (6 if released else 1)
    waveform = torch.from_numpy(speech(seconds, model.config.sampling_rate))[None].to(device)
    waveform = waveform[:, : waveform.shape[1] // model.config.hop_length * model.config.hop_length]

    def whole():
        with torch.inference_mode():
            return model.decode(audio_codes=model.encode(waveform[:, None]).audio_codes)

    return Row(
        f"{'released-size' if released else 'embedded'} codec there and back, {seconds:.3g} s",
        "1.5 x",
        {"baseline": whole, "dacse": lambda: decode_in_pieces(model, encode_in_pieces(model, waveform))},
        audio_seconds=seconds,
    )


def command(scale: Scale, device: str) -> Row:
    """A process that enhances 1 s of audio, against the imports of torch and transformers; a Llama's take longer."""
    folder = tempfile.mkdtemp()
    soundfile.write(f"{folder}/noisy.wav", speech(1.0, 44100), 44100)
    imports = [sys.executable, "-c", "import torch; from transformers import AutoModel"]
    model = [sys.executable, "-c", "from transformers import LlamaForCausalLM"]
    enhance = [sys.executable, "-m", "dacse", "enhance", f"{folder}/noisy.wav", "-o", f"{folder}/clean.wav"]
    return Row(
        "process: dacse enhance of 1 s, against the bare imports",
        "at most 1.5 times as long (0.67 x)",
        {
            "baseline": lambda: subprocess.run(imports, check=True, capture_output=True),
            "dacse": lambda: subprocess.run([*enhance, "--overwrite"], check=True, capture_output=True),
            "importing LlamaForCausalLM alone": lambda: subprocess.run(model, check=True, capture_output=True),
        },
    )


def gpu_windows(scale: Scale, device: str, rows: int, what: str, goal: str) -> Row:
    """Whole windows of the released grid through the released model's size, as many as `rows` together."""
    model = random_model({"num_hidden_layers": scale.large_layers}, torch.bfloat16, device)
    prompts = random_prompt(model.config, frames=scale.window_frames, rows=rows).to(device)
    llama, tokens = plain_llama(model), scale.window_frames * model.config.num_codebooks
    return Row(
        f"GPU: 1B bfloat16, {what}, {tokens} tokens each",
        goal,
        {
            "baseline": lambda: naive_generate(llama, model.config, prompts[:1], scale.window_tokens),
            "dacse": lambda: fast(model, prompts, tokens),
        },
        baseline_share=scale.window_tokens / (rows * tokens),
        audio_seconds=rows * scale.window_frames / FRAME_RATE,
        count=rows * tokens,
        bytes_read=bytes_of_tokens(model, prompts, tokens),
    )


def gpu_single(scale: Scale, device: str) -> Row:
    """GPU: 1B bfloat16, one window of 4 s alone, against the first tokens of it with the baseline."""
    return gpu_windows(scale, device, 1, "one window of 4 s", "0.6 of the memory limit")


def gpu_batched(scale: Scale, device: str) -> Row:
    """GPU: 1B bfloat16, 32 windows of 4 s together, against the first tokens of one of them with the baseline."""
    return gpu_windows(scale, device, 32, "32 windows of 4 s", "20 x, real-time factor 0.2")


CPU_ROWS = {
    "file": whole_file,
    "file775": released_grid_file,
    "window14": lambda scale, device: window(scale, device, "14M"),
    "window30": lambda scale, device: window(scale, device, "30M"),
    "large": large,
    "codec": lambda scale, device: codec(scale, device, released=False),
    "codec_released": lambda scale, device: codec(scale, device, released=True),
    "command": command,
}
GPU_ROWS = {"gpu_single": gpu_single, "gpu_batched": gpu_batched}
