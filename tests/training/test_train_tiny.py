"""The recipe of the embedded model, from recordings to a card, on a tiny corpus: stages, slices, bars, sweep."""

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import dacse  # noqa: F401
from command_dacse import cli
from hub_upload.facts import Facts
from tests.tiny_corpus import write_corpus
from tests.training.tiny_recipe import load, run_here
from training_dacse.codec.arguments import CodecTrainingArguments
from training_dacse.lm.arguments import AdapterArguments, DacSeTrainingArguments, DataArguments, Stage2Arguments
from training_dacse.tokens.tokenize import TokenizeArguments

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples" / "train_tiny"
RECIPE = {
    "clip_seconds": [0.25, 0.5],
    "tasks": {"clean": {}, "natural_noise": {"steps": [{"kind": "natural_noise"}]}},
}
TRAINER = {
    "max_steps": 4,
    "max_seconds": 60,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
SETTINGS = {
    "codec": {
        "where": "snr_db >= 30",
        "codec": {
            "sampling_rate": 8000,
            "downsampling_ratios": [8, 8, 4],
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 16,
            "n_codebooks": 3,
            "codebook_size": 16,
            "codebook_dim": 4,
        },
        "training": {
            "max_seconds": 600,
            "max_steps": 6,
            "batch_size": 2,
            "segment_seconds": 0.4,
            "restart_every": 2,
            "adversarial_from": 0.5,
            "discriminator_width": 2,
        },
    },
    "decoder": {"max_seconds": 600, "max_steps": 3, "batch_size": 2, "segment_seconds": 0.4},
    "tokens": {"clips": 16, "valid_clips": 2, "max_seconds": 0.25, "shard_size": 8},
    "subsampled": TRAINER | {"tokens_per_frame": 1, "save_strategy": "no"},
    "stage1": TRAINER
    | {
        "model": "tiny",
        "model_overrides": "hidden_size=91,num_hidden_layers=2,num_attention_heads=7,num_key_value_heads=1,"
        "head_dim=16,intermediate_size=64,initializer_range=0.02,attention_dropout=0.0,tie_word_embeddings=False",
        "policy": {"minimum_risk": True},
        "start_as_quantizer": True,
        "tokens_per_frame": 2,
        "save_steps": 2,
    },
    "stage2": TRAINER | {"order": ["natural_noise"], "replay": 0.3, "save_strategy": "no"},
    "adapters": TRAINER | {"adapters": {"denoise": ["natural_noise"]}, "rank": 2, "save_strategy": "no"},
    "evaluate": yaml.safe_load((HERE / "evaluate.yaml").read_text()),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Corpus and settings."""
    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus")
    (folder / "settings").mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    settings = SETTINGS | {"tokens": SETTINGS["tokens"] | {"recipe": str(recipe)}}
    for name, content in settings.items():
        (folder / "settings" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def train_tiny(place, *options, output="run"):
    """Runs the program; its exit status and what it printed."""
    command = [sys.executable, HERE, "--data", place / "corpus", "--settings", place / "settings"]
    done = subprocess.run(
        [*map(str, command), "--output", str(place / output), *options], capture_output=True, text=True, timeout=500
    )
    return done.returncode, done.stdout + done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(place):
    """All stages up to the adapters."""
    stages = ("corpus", "codec", "decoder", "tokens", "subsampled", "stage1", "stage2", "package", "adapters")
    options = ["--data", place / "corpus", "--settings", place / "settings", "--output", place / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)  # for the processes it starts
        main = load("__main__", "train_tiny_main")
        patch.setattr(sys.modules["lm"].subprocess, "run", run_here)
        patch.setattr(sys, "argv", ["train_tiny", *map(str, options), "--stage", *stages])
        assert main.main() == 0
    return place / "run"


def test_the_package_enhances_with_and_without_its_adapter(trained):
    from transformers import pipeline

    enhance = pipeline("audio-enhancement", model=str(trained / "package"), device="cpu")
    given = {"array": np.random.default_rng(0).normal(size=4000).astype(np.float32) / 10, "sampling_rate": 8000}
    outputs = [enhance(given, **options)["audio"] for options in ({}, {"adapter": "denoise"})]
    assert [output.shape for output in outputs] == [(4000,), (4000,)]
    assert enhance.model.dtype == enhance.processor.audio_tokenizer.dtype
    config = json.loads((trained / "package/adapters/denoise/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "dacse/tiny"


def test_weights_are_shipped_in_half_precision_as_they_were_trained_with(trained):
    model, codec = (load_file(trained / "package" / name) for name in ("model.safetensors", CODEC_WEIGHTS))
    assert {str(tensor.dtype) for tensor in model.values()} == {"torch.bfloat16"}
    assert {str(tensor.dtype) for tensor in codec.values()} == {"torch.float16"}
    for name, tensor in load_file(trained / CODEC_WEIGHTS).items():  # that made the tokens
        assert (tensor == codec[name].float()).all()


CODEC_WEIGHTS = "audio_tokenizer/model.safetensors"


def test_the_decoder_goes_on_and_codes_stay(trained):
    first, last = (
        load_file(trained / folder / "model.safetensors") for folder in ("decoder/first", "audio_tokenizer")
    )
    moved = {name.split(".")[0] for name in first if not (first[name] == last[name]).all()}
    assert moved == {"decoder"}


def test_a_given_codec_is_taken_as_it_is(place, trained):
    stages, settings = load("stages"), load("settings")
    described = SETTINGS["codec"] | {"given": str(trained / "audio_tokenizer")}
    described["codec"] = described["codec"] | {"codebook_dim": 2}  # of one that is not trained
    run = settings.Run(place / "corpus", place / "given", SETTINGS | {"codec": described})
    stages.train_codec(run)
    for name in ("config.json", "model.safetensors"):
        assert (run.codec / name).read_bytes() == (trained / "audio_tokenizer" / name).read_bytes()
    run.corpus.symlink_to(trained / "corpus")
    stages.refine_decoder(run)
    assert stages.DacConfig.from_pretrained(run.codec).codebook_dim == 4


def test_a_slice_that_ends_early_says_so(place):
    status, output = train_tiny(place, "--slice-seconds", "1", output="sliced")
    assert status == 75 and "goes on" in output


def test_a_run_travels_in_pieces(tmp_path, monkeypatch):
    borrowed = load("borrowed")
    run, files = tmp_path / "run", {"codec/checkpoint.pt": bytes(range(256)) * 200, "finished.json": b"{}"}
    for name, content in {**files, "corpus/speech.wav": b"stays", "codec/constant.tmp": b"half"}.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    borrowed.pack(run, tmp_path / "pieces", piece_bytes=10_000)
    pieces = sorted((tmp_path / "pieces").iterdir())
    assert len(pieces) > 5 and max(piece.stat().st_size for piece in pieces) <= 10_000

    def train(command):
        assert command[2:] == ["--output", tmp_path / "lent", "--slice-seconds", "60.0", "--settings", "gpu"]
        assert {name: (tmp_path / "lent" / name).read_bytes() for name in files} == files
        (tmp_path / "lent/finished.json").write_bytes(b"more")
        return subprocess.CompletedProcess(command, 75)

    monkeypatch.setattr(borrowed.subprocess, "run", train)
    given = tmp_path / "lent", tmp_path / "pieces", tmp_path / "back", 60.0, ["--settings", "gpu"]
    assert borrowed.run_slice(*given) == 75
    borrowed.unpack(tmp_path / "back", run)
    assert (run / "finished.json").read_bytes() == b"more" and (run / "corpus").exists()
    assert sorted(path.name for path in (tmp_path / "lent").iterdir()) == ["codec", "finished.json"]
    with pytest.raises(FileExistsError, match="is not empty"):
        borrowed.pack(run, tmp_path / "back")
    pieces[2].unlink()
    with pytest.raises(FileNotFoundError, match="run-003-of-.* is missing"):
        borrowed.unpack(tmp_path / "pieces", run)


def test_the_corpus_is_decoded_whole(trained):
    rows = (trained / "corpus/MANIFEST.tsv").read_text().splitlines()
    assert len(rows) == 1 + 16 and all(".wav\t" in row for row in rows[1:])


def test_stages_are_gone_through_from_the_first_that_has_changed(place, monkeypatch):
    main, settings = load("__main__", "train_tiny_main"), load("settings")
    run, gone = settings.Run(place, place / "fresh", settings.read_settings("cpu")), []
    run.output.mkdir()
    for name in main.STAGES:
        monkeypatch.setitem(main.STAGES, name, lambda run, name=name: gone.append(name))
    main.run_stages(run, ["codec"])
    main.run_stages(run, None)  # the corpus is missing, so what was made from it is done again
    main.run_stages(run, None)
    assert gone == ["codec", *main.STAGES]
    run = run.with_budget(*settings.budget("stage1=5"))
    assert run.settings["stage1"]["max_seconds"] == 5
    main.run_stages(run, None)
    assert gone[1 + len(main.STAGES) :] == list(main.STAGES)[list(main.STAGES).index("stage1") :]
    other = run.with_settings("tokens", clips=7)
    with pytest.raises(SystemExit, match="tokens was made with .*'clips': 5120.* give another --output"):
        main.run_stages(other, None)
    with pytest.raises(settings.argparse.ArgumentTypeError, match="give codec="):
        settings.budget("card=3")
    assert run.with_budget("codec", 7.0).settings["codec"]["training"]["max_seconds"] == 7
    with pytest.raises(ValueError, match="stage2=9: these settings have no stage2.yaml"):
        run.with_budget("stage2", 9.0)


def test_new_clips_are_made_as_the_first_ones(place, monkeypatch):
    lm, settings, commands, given = load("lm"), load("settings"), [], []
    run = settings.Run(place / "corpus", place / "run", settings.read_settings(place / "settings"))
    run = run.with_settings("tokens", ahead=1, where="snr_db >= 30")
    with monkeypatch.context() as patch:
        patch.setattr(lm.subprocess, "Popen", lambda command, **kwargs: commands.append(command) or MagicMock())
        with lm.new_tokens(run):
            pass
    command = list(map(str, commands[0]))
    monkeypatch.setattr("training_dacse.tokens.tokenize.tokenize", lambda arguments, *_: given.append(arguments) or {})
    done = CliRunner().invoke(cli.app, command[command.index("tokenize") :])
    assert done.exit_code == 0, done.output
    assert given == [TokenizeArguments(**run.token_settings(), follow=True)]


def test_a_sweep_compares_codec_and_language_model_of_each_grid(place, monkeypatch):
    monkeypatch.syspath_prepend(HERE)  # for the processes it starts
    sweep = load("sweep")
    monkeypatch.setattr(sys.modules["lm"].subprocess, "run", run_here)
    grids = {"3 x 16": {}, "2 x 16": {"n_codebooks": 2}}
    (place / "grids.yaml").write_text(yaml.safe_dump(grids, sort_keys=False))
    options = ["--data", place / "corpus", "--settings", place / "settings", "--grids", place / "grids.yaml"]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, options), "--output", str(place / "sweep")])
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    sweep.main()
    results = [
        json.loads((place / f"sweep/results/{name}-0.json").read_text())["figures"] for name in ("3_x_16", "2_x_16")
    ]
    assert [figures["tokens/s"] for figures in results] == [93.75, 62.5]  # 31.25 frames of 256 samples
    assert results[0]["kbit/s"] == 0.375
    assert all(np.isfinite(value) for figures in results for value in figures.values())
    assert "| 2 x 16 |" in (place / "sweep/results/results.md").read_text()
    written = (place / "sweep/3_x_16/figures.json").stat().st_mtime
    sweep.main()  # both are done
    assert (place / "sweep/3_x_16/figures.json").stat().st_mtime == written


def test_bars_are_read_off_a_summary_with_the_right_sign():
    bars = load("bars")
    names = ("dnsmos_ovrl", "dnsmos_bak", "stoi", "pesq", "plcmos", "lsd")
    noisy = dict(zip(names, (2.0, 2.0, 0.8, 1.5, 2.0, 2.0), strict=True))
    better = dict(zip(names, (2.6, 3.0, 0.9, 3.6, 3.0, 0.9), strict=True))
    tasks = ("clean", "natural_noise", "white_noise", "packet_loss", "down_sampling", "reverberation")
    measured = dict.fromkeys(("outside_regions", "silence_db", "noise_db", "music_db"), 0.0) | {
        "real_time_factor": 0.9,
        "plcmos_with_regions": 0.5,
        "weights_mb": 30.0,
    }

    def missed(enhanced, **changes):
        systems = {"noisy": noisy, "codec:p": better, "dacse:p": enhanced, "deepfilternet": better}
        summary = {
            name: {"tasks": {task: {key: {"mean": value} for key, value in scores.items()} for task in tasks}}
            for name, scores in systems.items()
        }
        scores = bars.Scores({"systems": summary}, "p", measured | changes)
        return {bar.what for bar in bars.BARS if not bar.goal(scores).passed}

    assert not missed(better)
    assert missed(noisy) == {
        "natural noise: DNSMOS OVRL over DeepFilterNet 3",
        "natural noise: DNSMOS BAK over DeepFilterNet 3",
        "white noise: DNSMOS OVRL over DeepFilterNet 3",
        "white noise: DNSMOS BAK over DeepFilterNet 3",
        "packet loss: PLCMOS over noisy",
        "packet loss: STOI over noisy",
        "down-sampled to 4-8 kHz: log-spectral distance, of the noisy one's",
        "reverberation: DNSMOS OVRL over noisy",
        "clean in: PESQ",
    }
    mangled = better | {"stoi": 0.7, "pesq": 1.4}
    assert missed(mangled) == {
        *(f"{noise}: {score} over noisy" for noise in ("natural noise", "white noise") for score in ("STOI", "PESQ")),
        "packet loss: STOI over noisy",
        "reverberation: STOI over noisy",
        "clean in: PESQ",
    }
    assert missed(better, noise_db=0.1, weights_mb=41.0) == {
        "pure noise in: dB above the input",
        "weights: MB",
    }


def test_goals_are_shown_on_a_card(tmp_path):
    from hub_upload.card import TEMPLATES

    goals = [{"what": "codec: STOI", "goal": "≥ 0.9", "reached": "0.7", "passed": False}]
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({"goals": goals}))
    facts = Facts.read(tmp_path)
    shown = TEMPLATES.get_template("facts.md").render(facts=facts, evaluations=[])
    assert "| codec: STOI | ≥ 0.9 | 0.7 | **missed** |" in shown
    assert "Goals" not in TEMPLATES.get_template("facts.md").render(facts=Facts(), evaluations=[])


def test_a_gpu_goes_on_with_a_run_of_a_cpu():
    cpu, gpu = map(load("settings").read_settings, ("cpu", "gpu"))
    assert cpu["codec"]["codec"] == gpu["codec"]["codec"]
    for name in ("model", "model_overrides", "start_as_quantizer"):
        assert cpu["stage1"][name] == gpu["stage1"][name]
    assert cpu["tokens"]["recipe"] == gpu["tokens"]["recipe"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_shipped_settings_are_known_to_what_they_configure(device):
    settings = load("settings")
    read = settings.read_settings(device)
    CodecTrainingArguments("out", **read["codec"]["training"])
    if read["decoder"]:
        CodecTrainingArguments("out", **read["decoder"])
    start = {*load("train_lm").StartArguments.__dataclass_fields__}
    known = {
        name: {*DataArguments.__dataclass_fields__, *DacSeTrainingArguments.__dataclass_fields__, *settings.OWN}
        for name in ("subsampled", "stage1", "stage2", "adapters")
    }
    known["subsampled"] |= start
    known["stage1"] |= start
    known["stage2"] |= {*Stage2Arguments.__dataclass_fields__}
    known["adapters"] |= {*AdapterArguments.__dataclass_fields__}
    known["tokens"] = {*TokenizeArguments.__dataclass_fields__}
    for stage, names in known.items():
        assert set(read[stage]) <= names
    tasks = yaml.safe_load((ROOT / read["tokens"]["recipe"]).read_text())["tasks"]
    assert {*read["stage2"].get("order", []), *sum(read["adapters"]["adapters"].values(), [])} <= set(tasks)
