"""Rows of the speed table that begin or end with audio: whole files, the codec, a corpus, the command.

Every row is a function of a `Scale` and a device that returns a `Row` of calls which do the same work.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
import torch
from naive import naive_enhance, naive_tokens, passes_with_draft, plain_llama
from speed_row import Row, Scale, speech
from speed_rows_decoding import random_model
from transformers import DacConfig, DacModel, pipeline

import dacse
from pipeline_dacse.windows_dacse import overlap_frames, split_windows, window_frames
from processing_dacse.codec_dacse import decode_in_pieces, encode_in_pieces
from training_dacse.clips.corpus import corpus_pairs
from training_dacse.clips.digests import Digests
from training_dacse.tokens.tokenize import start_worker, work
from training_dacse.tokens.writer import ShardWriter, loaded_processor

PACKET_SECONDS, LOSS = 0.1, 0.2
DRAFT = 24  # tokens
RECORDINGS = 8  # of the corpus
RECIPE = """
clip_seconds: [{seconds}, {seconds}]
tasks:
  white_noise: {{steps: [{{kind: white_noise, snr_db: [5, 25]}}]}}
  packet_loss: {{steps: [{{kind: packet_loss, packet_ms: [100, 200], drop_probability: [0.1, 0.3]}}]}}
"""


def whole_file(scale: Scale, device: str) -> Row:
    """A recording through the whole pipeline, the embedded model."""
    enhance = pipeline("audio-enhancement", device=device)
    return file_row(scale.file_seconds, enhance, "embedded model", "12 x, real-time factor < 0.6")


def released_grid_file(scale: Scale, device: str) -> Row:
    """The same with a small model on the released grid, 775 tokens a second, in windows of 2 s; random weights."""
    size = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    model = random_model(size | {"max_position_embeddings": 3 + 2 * 172 * 9}, torch.float32, device)
    codec = {"encoder_hidden_size": 16, "decoder_hidden_size": 256, "downsampling_ratios": [4, 4, 4, 8]}
    codec = DacModel(DacConfig(**codec, n_codebooks=9, sampling_rate=44100)).eval()
    enhance = dacse.AudioEnhancementPipeline(model=model, codec=codec, device=device)
    name = f"{model.num_parameters() / 1e6:.0f} M parameters at 775 tokens a second"
    return file_row(scale.grid_seconds, enhance, name, "8 x, real-time factor < 1.5")


def file_row(seconds: float, enhance, name: str, goal: str) -> Row:
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
        goal,
        calls,
        baseline_share=1 / len(windows),
        audio_seconds=seconds,
        facts={"windows": len(windows), "together": enhance.enhancer.default_batch_size()},
    )


def lost_packets(scale: Scale, device: str) -> Row:
    """One window with lost packets, embedded model: all of it, only its gaps, and what drafts would save.

    Noisy ids as a draft are not built: greedy ids say how many passes they would take.
    """
    enhance = pipeline("audio-enhancement", device=device)
    processor, config, rate = enhance.processor, enhance.model.config, enhance.processor.sampling_rate
    frames = window_frames(None, processor.frame_rate, config.max_frames, processor.window_frames)
    waveform, regions = lose_packets(speech(frames / processor.frame_rate, rate), rate)
    codes = processor.encode(waveform[None])
    prompt, llama = processor.build_prompt(codes).to(device), plain_llama(enhance.model)
    clean = enhance.model.generate(prompt)[0, prompt.shape[1] : -1].tolist()
    noisy = prompt[0, 1:-1].tolist()
    once = partial(enhance, waveform, sampling_rate=rate, keep_recording=False)
    return Row(
        f"{frames / processor.frame_rate:.3g} s with lost packets, embedded model",
        "2 x fewer passes by a draft, or none is built",
        {
            "baseline": lambda: naive_enhance(llama, config, processor, waveform),
            "dacse": once,
            "its gaps as regions": partial(once, regions=regions),
            "the library's prompt lookup": partial(once, prompt_lookup_num_tokens=DRAFT),
        },
        audio_seconds=frames / processor.frame_rate,
        facts={
            "noisy ids that stay": f"{np.mean(np.equal(clean, noisy)):.0%}",
            "times fewer passes by drafts of them": round(len(clean) / passes_with_draft(clean, noisy, DRAFT), 2),
        },
    )


def lose_packets(waveform: np.ndarray, rate: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """A waveform (sample,) with a fifth of its packets set to zero, and where they were, in seconds."""
    packet = round(PACKET_SECONDS * rate)
    starts = np.arange(0, len(waveform), packet)
    lost = starts[np.random.default_rng(0).random(len(starts)) < LOSS]
    damaged = waveform.copy()
    for start in lost:
        damaged[start : start + packet] = 0
    return damaged, [(start / rate, min(start + packet, len(waveform)) / rate) for start in lost.tolist()]


def released_codec() -> DacModel:
    """A codec of the shape of descript/dac_44khz, its weights random."""
    return DacModel(DacConfig(downsampling_ratios=[2, 4, 8, 8], n_codebooks=9, sampling_rate=44100)).eval()


def embedded_codec(scale: Scale, device: str) -> Row:
    """The embedded model's codec there and back."""
    codec = pipeline("audio-enhancement", device=device).processor.audio_tokenizer
    return codec_row(codec, scale.codec_seconds, "embedded codec")


def released_size_codec(scale: Scale, device: str) -> Row:
    """The released codec's size there and back, random weights."""
    return codec_row(released_codec().to(device), scale.codec_seconds / 6, "released-size codec")


def gpu_codec(scale: Scale, device: str) -> Row:
    """GPU: released-size codec there and back, against the whole at once and that compiled."""
    return codec_row(released_codec().to(device), scale.codec_seconds * 3, "GPU: released-size codec", compiled=True)


def codec_row(codec: DacModel, seconds: float, name: str, compiled: bool = False) -> Row:
    """Encoding and decoding a recording in pieces against the whole at once."""
    waveform = torch.from_numpy(speech(seconds, codec.config.sampling_rate))[None].to(codec.device)
    waveform = waveform[:, : waveform.shape[1] // codec.config.hop_length * codec.config.hop_length]

    def whole():
        with torch.inference_mode():
            return codec.decode(audio_codes=codec.encode(waveform[:, None]).audio_codes)

    calls = {"baseline": whole, "dacse": lambda: decode_in_pieces(codec, encode_in_pieces(codec, waveform))}
    if compiled:
        calls["the whole, compiled"] = torch.compile(whole)
        calls["the whole, compiled"]()
    return Row(f"{name} there and back, {seconds:.3g} s", "2 x", calls, audio_seconds=seconds)


def tokens(scale: Scale, device: str) -> Row:
    """Clips of a corpus degraded and made into shards of tokens, embedded codec, on all cores."""
    return corpus_row(scale, device, dacse.default_model(), "embedded codec", "3 x")


def gpu_tokens(scale: Scale, device: str) -> Row:
    """GPU: clips of a corpus degraded and made into shards of tokens, released-size codec, random weights."""
    folder = tempfile.mkdtemp()
    released_codec().save_pretrained(folder)
    return corpus_row(scale, device, folder, "GPU: released-size codec", "real-time factor 0.001")


def corpus_row(scale: Scale, device: str, codec: str, name: str, goal: str) -> Row:
    """Both ways degrade the same clips in the same way; a clip counts once for its two sides.

    Ours shares the shards out to a process a thread, as `dacse tokenize --processes` does; their start is not timed.
    """
    folder = Path(tempfile.mkdtemp())
    processor = loaded_processor(codec, device)
    rate, processes = processor.sampling_rate, torch.get_num_threads() if device == "cpu" else 1
    recording = speech(2 * scale.clip_seconds, rate)
    for number in range(RECORDINGS):
        place = folder / "speech" / str(number) / "speech.wav"
        place.parent.mkdir(parents=True)
        soundfile.write(place, np.roll(recording, number * rate // 4), rate)
    (folder / "recipe.yaml").write_text(RECIPE.format(seconds=scale.clip_seconds))
    pairs = corpus_pairs(str(folder / "speech"), folder / "recipe.yaml", rate, processor.hop_length, whole_speech=True)
    writer = ShardWriter(folder / "tokens", pairs, codec, scale.clips, scale.clips // processes, device=device)
    writer.claim(Digests())
    shards = [("train", number) for number in range(writer.num_shards)]
    if processes == 1:
        ours = partial(writer.write, 0)
    else:
        pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker, ({"train": writer},))
        ours = partial(write_together, pool, shards)
        ours()

    return Row(
        f"{scale.clips} clips of {scale.clip_seconds:g} s made into tokens, {name}",
        goal,
        {"baseline": lambda: naive_tokens(processor, pairs, range(scale.clips), folder), "dacse": ours},
        audio_seconds=scale.clips * scale.clip_seconds,
        facts={"processes": processes},
    )


def write_together(pool: ProcessPoolExecutor, shards: list[tuple[str, int]]) -> None:
    """Has the processes of a pool make shards."""
    for _ in pool.map(work, shards):
        pass


def command(scale: Scale, device: str) -> Row:
    """A process that enhances 1 s of audio, against the imports of torch and transformers; a Llama's take longer."""
    folder = tempfile.mkdtemp()
    soundfile.write(f"{folder}/noisy.wav", speech(1.0, 44100), 44100)
    imports = [sys.executable, "-c", "import torch; from transformers import AutoModel"]
    classes = [sys.executable, "-c", "from transformers import DacModel, LlamaForCausalLM"]
    enhance = [sys.executable, "-m", "dacse", "enhance", f"{folder}/noisy.wav", "-o", f"{folder}/clean.wav"]
    return Row(
        "process: dacse enhance of 1 s, against the bare imports",
        "at most 1.3 times as long (0.77 x)",
        {
            "baseline": lambda: subprocess.run(imports, check=True, capture_output=True),
            "dacse": lambda: subprocess.run([*enhance, "--overwrite"], check=True, capture_output=True),
            "the library's two models imported": lambda: subprocess.run(classes, check=True, capture_output=True),
        },
    )
