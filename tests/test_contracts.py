"""The contracts of the design, each a test. The rooms' own tests go further into each."""

import ast
import functools
import gc
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM, pipeline
from transformers.utils import logging
from typer.testing import CliRunner

import dacse  # noqa: F401  registers everything
from command_dacse.cli import app
from pipeline_dacse.options_dacse import EnhanceOptions
from pipeline_dacse.recording_dacse import Recording
from tests.loopback_hub import LoopbackHub
from tests.tiny import tiny_codec, tiny_model, tiny_pipeline, tiny_prompts

RATE = 8000  # of the tiny codec
ROOT = Path(__file__).parents[1]

# In a process without the package: enhance argv[2] with the model argv[1] into argv[3], and save the pipeline again.
FRESH_PROCESS = """
import sys

class NoRooms:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("dacse", "modeling_dacse", "processing_dacse", "pipeline_dacse"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoRooms)
import numpy as np
from transformers import pipeline

try:
    pipeline("audio-enhancement", model=sys.argv[1], trust_remote_code=False)
except ValueError as error:
    print(error)
enhance = pipeline("audio-enhancement", model=sys.argv[1], trust_remote_code=True, device="cpu")
np.save(sys.argv[3], enhance({"array": np.load(sys.argv[2]), "sampling_rate": 8000})["audio"])
enhance.save_pretrained("again")
codec = sys.argv[1] + "/audio_tokenizer" if sys.argv[1][0] == "/" else None
other = pipeline("audio-enhancement", model=sys.argv[1], trust_remote_code=True, codec=codec, device="cpu")
assert type(other.processor).__module__.startswith("transformers_modules")
"""


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return 0.3 * np.random.default_rng(0).standard_normal((channels, samples)).astype(np.float32)


def enhance_in_a_fresh_process(model: str, waveform: np.ndarray, folder: Path, environment: dict[str, str]):
    """The audio, and what the process printed."""
    np.save(folder / "noisy.npy", waveform)
    command = [sys.executable, "-c", FRESH_PROCESS, model, str(folder / "noisy.npy"), str(folder / "out.npy")]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return np.load(folder / "out.npy"), process.stdout


@pytest.fixture(scope="module")
def enhance():
    return tiny_pipeline()


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Of a process that finds neither this package nor the user's cache."""
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return dict(os.environ)


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 81])
@pytest.mark.parametrize("rate", [8000, 192000])
def test_contract_1_the_output_has_the_input_s_length_and_its_channels_in_order(enhance, samples, rate):
    channels = np.concatenate([noise(samples), np.zeros((1, samples), dtype=np.float32)])[: min(2, samples)]
    for output_rate, expected in ((None, RATE), ("input", rate)):
        out = enhance({"array": channels, "sampling_rate": rate}, output_sampling_rate=output_rate)["audio"]
        assert np.atleast_2d(out).shape == (len(channels), round(samples * expected / rate))
        assert not np.atleast_2d(out)[1:].any()  # the silent channel is still the second


@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "temperature": 5.0}, {"num_beams": 3}])
def test_contract_2_generated_ids_are_whole_frames_on_the_codebook_grid(mode):
    model = tiny_model()
    layout, frames = model.config, [3, 5, 1]
    prompts = tiny_prompts(frames, layout)
    ids = model.generate(**prompts, **mode)[:, prompts["input_ids"].shape[1] :]
    for row, count in zip(ids, frames, strict=True):
        clean = row[: count * layout.num_codebooks]
        codebook = torch.arange(len(clean)) % layout.num_codebooks
        assert ((clean - layout.first_code_id) // layout.codebook_size).equal(codebook)
        assert row[len(clean)] == layout.eos_token_id and (row[len(clean) + 1 :] == layout.pad_token_id).all()


def test_contract_3_sampled_rows_and_threads_too(enhance):
    recordings = [
        {"array": noise(170, channels=2), "sampling_rate": RATE},
        {"array": noise(90), "sampling_rate": RATE},
    ]
    mode = {"do_sample": True, "seed": 3}
    alone = [enhance(recordings, batch_size=size, **mode) for size in (1, 5)]
    for one, other in zip(*alone, strict=True):
        np.testing.assert_array_equal(one["audio"], other["audio"])
    with ThreadPoolExecutor(3) as pool:
        for together in pool.map(lambda _: enhance(recordings, **mode), range(6)):
            for out, expected in zip(together, alone[0], strict=True):
                np.testing.assert_array_equal(out["audio"], expected["audio"])


def test_contract_3_batches_and_streams_are_the_same_as_one_window_after_another(enhance):
    recordings = [noise(170, channels=2), noise(90), noise(8)]
    alone = [enhance(recording, sampling_rate=RATE)["audio"] for recording in recordings]
    together = [out["audio"] for out in enhance(recordings, sampling_rate=RATE, batch_size=5)]
    streamed = [np.concatenate(list(enhance.stream(r, sampling_rate=RATE, batch_size=3)), axis=1) for r in recordings]
    for expected, batched, pieces in zip(alone, together, streamed, strict=True):
        np.testing.assert_array_equal(batched, expected)
        np.testing.assert_array_equal(np.squeeze(pieces), expected)


def test_contract_4_a_saved_directory_gives_the_same_output_in_a_process_without_the_package(
    enhance, tmp_path, environment
):
    enhance.save_pretrained(tmp_path / "model")
    expected = enhance(noise(90), sampling_rate=RATE)["audio"]
    loaded = pipeline("audio-enhancement", model=str(tmp_path / "model"), device="cpu")
    np.testing.assert_array_equal(loaded(noise(90), sampling_rate=RATE)["audio"], expected)
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    audio, printed = enhance_in_a_fresh_process(str(tmp_path / "model"), noise(90), tmp_path, offline)
    np.testing.assert_array_equal(audio, expected)
    assert "trust_remote_code=True" in printed
    saved, again = ({path.name: path for path in (tmp_path / name).rglob("*.*")} for name in ("model", "again"))
    assert saved.keys() == again.keys()
    for name in ("config.json", "processor_config.json"):
        assert json.loads(saved[name].read_text()) == json.loads(again[name].read_text())


@pytest.mark.parametrize("is_saved_too", [False, True])
def test_contract_4_so_does_a_hub_repository_pushed_by_the_pipeline(
    enhance, tmp_path, environment, monkeypatch, is_saved_too
):
    with LoopbackHub() as hub:
        hub.attach(monkeypatch)
        if is_saved_too:
            enhance.save_pretrained(tmp_path / "here", push_to_hub=True, repo_id="user/model")
            assert (tmp_path / "here/pipeline_dacse.py").exists()
        else:
            enhance.push_to_hub("user/model")
        environment |= hub.environment(tmp_path / "home")
        audio, _ = enhance_in_a_fresh_process("user/model", noise(90), tmp_path, environment)
    np.testing.assert_array_equal(audio, enhance(noise(90), sampling_rate=RATE)["audio"])


def test_contract_5_the_released_plain_llama_layout_enhances_as_it_stands_and_as_a_naive_loop(tmp_path, caplog):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        released = {"vocab_size": 9221, "max_position_embeddings": 8192, "tie_word_embeddings": True}
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}}
        llama = LlamaForCausalLM(LlamaConfig(**sizes, **released, **rope, initializer_range=0.2)).eval()
    llama.save_pretrained(tmp_path / "llama")
    codec = tiny_codec(downsampling_ratios=[2, 4, 8, 8], n_codebooks=9, codebook_size=1024, sampling_rate=44100)
    codec.save_pretrained(tmp_path / "codec")

    logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        enhance = pipeline(
            "audio-enhancement", model=str(tmp_path / "llama"), codec=str(tmp_path / "codec"), device="cpu"
        )
        waveform = noise(5 * 512)
        assert enhance(waveform, sampling_rate=44100)["audio"].shape == (5 * 512,)
    logging.disable_propagation()
    assert not caplog.records

    options = EnhanceOptions(sampling_rate=44100)
    windows = list(Recording(enhance.processor, waveform, options, 454).windows())
    (row,) = enhance.enhancer.answer(windows, None, options, enhance.enhancer.check(options))
    prompt = ids = enhance.processor.build_prompt(windows[0].codes[None])
    for token in range(5 * 9):
        first = 5 + token % 9 * 1024
        best = llama(ids).logits[0, -1, first : first + 1024].argmax() + first
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    naive = (ids[0, prompt.shape[1] :].view(5, 9).T - 5) % 1024
    assert row.codes.equal(naive)


def bytes_of_tensors() -> int:
    tensors = (one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def test_contract_6_a_stream_holds_no_more_memory_the_longer_it_goes_on(tmp_path):
    enhance = tiny_pipeline()
    enhance.processor.stream_audio = functools.partial(enhance.processor.stream_audio, block_seconds=0.1)
    soundfile.write(tmp_path / "noise.wav", noise(24 * RATE)[0], RATE)
    samples, held = 0, []
    tracemalloc.start()
    for piece in enhance.stream(tmp_path / "noise.wav", batch_size=64):
        samples += piece.shape[1]
        if samples >= 8 * RATE * (len(held) + 1):  # 8 s are longer than all buffers
            held.append(tracemalloc.get_traced_memory()[0] + bytes_of_tensors())
    tracemalloc.stop()
    assert samples == 24 * RATE and len(held) == 3
    assert held[2] - held[0] < 100_000, held  # 16 s more of audio would be 512 kB


def test_contract_7_a_bad_file_is_named_and_leaves_nothing_behind_while_the_others_finish(enhance, tmp_path):
    enhance.save_pretrained(tmp_path / "model")
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    soundfile.write(noisy / "good.wav", noise(90)[0], RATE)
    soundfile.write(noisy / "also good.wav", noise(90)[0], RATE)
    (noisy / "bad.wav").write_text("no audio")
    command = [
        "enhance",
        str(noisy),
        "-o",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / "model"),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "bad.wav cannot be read as audio" in result.stderr and "Traceback" not in result.output
    assert result.stderr.count("on cpu") == 1  # the device, once
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["also good.wav", "good.wav"]


def test_contract_8_remote_code_is_never_trusted_by_default_and_weights_are_safetensors(enhance, tmp_path):
    files = [path for room in ROOT.glob("*/__init__.py") for path in room.parent.rglob("*.py")]
    assert len(files) >= 15
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.args + node.args.kwonlyargs
                values = [None] * (len(node.args.args) - len(node.args.defaults)) + node.args.defaults
                defaults = dict(zip([a.arg for a in arguments], values + node.args.kw_defaults, strict=True))
                default = defaults.get("trust_remote_code")
                assert not (isinstance(default, ast.Constant) and default.value is True), path
    enhance.save_pretrained(tmp_path)
    weights = [path.suffix for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".py", ".json")]
    assert weights == [".safetensors", ".safetensors"]
