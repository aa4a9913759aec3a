"""Metrics: original values, honest gaps, and nothing that depends on company."""

import importlib.util
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from evaluation_dacse.metrics import METRICS, is_at_hand, load_metric, metric_path, metrics_at_hand

GOLDENS = Path(__file__).parent / "goldens"


def spoilt_clips():
    """The recordings the stored values were computed from, by their generator."""
    spec = importlib.util.spec_from_file_location("make_metric_values", GOLDENS / "make_metric_values.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.clips()


CLEAN, SPOILT, RATE = spoilt_clips()
VALUES = json.loads((GOLDENS / "metric_values.json").read_text())
OFFLINE = [name for name, about in METRICS.items() if not about.model]
metric = pytest.fixture(scope="module", params=OFFLINE)(lambda request: load_metric(request.param))


def clip(array, rate=RATE):
    return {"array": array, "sampling_rate": rate}


def test_every_metric_file_is_listed():
    files = {path.stem for path in Path(metric_path("")).parent.glob("*.py")}
    assert files - {"__init__"} == set(METRICS)
    assert len(METRICS) >= 13 and len(OFFLINE) >= 8
    for about in METRICS.values():
        assert all(-math.inf < scale.lowest < scale.highest < math.inf for scale in about.scales.values())


def test_metrics_at_hand_are_those_without_a_model_or_with_one_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert metrics_at_hand() == OFFLINE
    folder = tmp_path / "models--openai--whisper-large-v3"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert is_at_hand("word_error_rate") and metrics_at_hand() == [*OFFLINE, "word_error_rate"]


def test_values_agree_with_the_original_implementations(metric):
    for name, array in SPOILT.items():
        values, reason = metric.measure(clip(array), clip(CLEAN))
        assert reason is None
        for score, value in values.items():
            # 1e-4: the tolerance of metrics in this project; here same code or same formula on the same samples
            assert value == pytest.approx(VALUES[name][score], abs=1e-4), (name, score)


def test_scales_tell_the_better_of_two(metric):
    """The clean recording, or the least spoilt one, is on the better side of each scale."""
    better = metric.measure(clip(CLEAN + 1e-4 * SPOILT["noise"][::-1]), clip(CLEAN))[0]
    spoilt = SPOILT["loss" if "plcmos" in metric.about.scales else "noise"]
    worse = metric.measure(clip(spoilt), clip(CLEAN))[0]
    for name, scale in metric.about.scales.items():
        assert (better[name] > worse[name]) == scale.higher_is_better, name
        for value in (better[name], worse[name]):
            assert scale.lowest <= value <= scale.highest, name


def worst(metric) -> dict:
    return {name: scale.worst for name, scale in metric.about.scales.items()}


def test_a_silent_output_gets_the_worst_value(metric):
    faint = 1e-4 * np.random.default_rng(0).standard_normal(len(CLEAN)).astype(np.float32)
    for output in (np.zeros_like(CLEAN), 1e-5 * CLEAN, faint * np.abs(CLEAN).std()):
        values, reason = metric.measure(clip(output), clip(CLEAN))
        assert values == worst(metric) and reason == "output silent: worst value"


def test_a_silent_or_short_reference_leaves_the_clip_out(metric):
    short = CLEAN[20000:20100]
    for output, reference in ((CLEAN, np.zeros_like(CLEAN)), (short, short), (np.zeros_like(short), short)):
        values, reason = metric.measure(clip(output), clip(reference))
        assert all(math.isnan(value) for value in values.values())
        assert reason.startswith(("reference silent", "reference shorter than")) and reason.endswith(": left out")


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 96000])
def test_clips_of_any_rate_are_scored(metric, rate):
    array = np.tile(CLEAN, 2)[: 2 * rate]
    values, reason = metric.measure(clip(array, rate), clip(array, rate))
    assert reason is None and all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("name", ["dnsmos", "plcmos"])
def test_a_short_clip_without_a_reference_is_left_out_and_a_silent_one_is_not(name):
    metric = load_metric(name)
    assert math.isnan(metric.measure(clip(CLEAN[:1000]))[0][next(iter(metric.about.scales))])
    assert metric.measure(clip(np.zeros_like(CLEAN)))[0] == worst(metric)


def test_speech_too_short_for_stoi_is_the_references_fault_alone():
    """Also beside a system whose output has plenty."""
    nearly_silent = CLEAN[:RATE].copy()
    nearly_silent[RATE // 10 :] *= 1e-4
    for output in (nearly_silent, CLEAN[:RATE]):
        values, reason = load_metric("stoi").measure(clip(output), clip(nearly_silent))
        assert math.isnan(values["stoi"]) and reason == "reference with less than 0.4 s of speech: left out"


def test_a_reference_in_which_pesq_finds_no_speech_leaves_the_clip_out():
    burst = np.zeros_like(CLEAN)
    burst[1000:2000] = 0.5 * np.random.default_rng(0).standard_normal(1000)
    metric = load_metric("pesq")
    assert metric.measure(clip(CLEAN), clip(burst))[1] == "reference without speech: left out"
    assert metric.measure(clip(burst), clip(CLEAN))[0]["pesq"] < 1.1


def test_si_sdr_ends_at_60_db():
    metric = load_metric("si_sdr")
    assert metric.measure(clip(0.5 * CLEAN), clip(CLEAN))[0]["si_sdr"] == 60
    even, odd = (np.where(np.arange(1000) % 2 == part, 0.1, 0.0).astype(np.float32) for part in (0, 1))
    assert metric.measure(clip(even - 0.05), clip(0.05 - odd))[0]["si_sdr"] == 60
    assert (
        metric.measure(clip(np.tile([0.1, 0.1, -0.1, -0.1], 250)), clip(np.tile([0.1, -0.1], 500)))[0]["si_sdr"] == -60
    )


def test_clips_of_different_length_or_shape_are_an_error():
    metric = load_metric("si_sdr")
    with pytest.raises(ValueError, match="clips of one length"):
        metric.measure(clip(CLEAN[:-1]), clip(CLEAN))
    with pytest.raises(ValueError, match="mono"):
        metric.measure(clip(CLEAN[None]), clip(CLEAN))


def test_an_unknown_metric_or_a_model_too_many_is_named():
    with pytest.raises(ValueError, match="unknown metric 'pesk'; known are dnsmos"):
        load_metric("pesk")
    with pytest.raises(ValueError, match="pesq listens with no model"):
        load_metric("pesq:openai/whisper-tiny")


@pytest.fixture(scope="module")
def modules():
    """The quick metrics as `evaluate` loads them."""
    return [evaluate.load(metric_path(name)) for name in ("pesq", "stoi", "si_sdr", "mel_distance")]


def test_evaluate_loads_and_combines_the_modules(modules):
    for module in modules:
        assert module.citation and module.description and set(module.features) == {"predictions", "references"}
    combined = evaluate.combine(modules)
    predictions = [clip(array) for array in SPOILT.values()] + [clip(np.zeros_like(CLEAN))]
    result = combined.compute(predictions=predictions, references=[clip(CLEAN)] * 4)
    assert result["pesq_unscorable"] == {"output silent: worst value": 1}
    for score, worst_value in {"pesq": 1.0, "stoi": 0, "estoi": 0, "si_sdr": -60, "mel_distance": 24}.items():
        expected = [*(VALUES[name][score] for name in SPOILT), worst_value]
        assert result[score] == pytest.approx(np.mean(expected), abs=1e-4)
        assert result[f"{score}_per_clip"] == pytest.approx(expected, abs=1e-4)


def check_order_and_batches(metric):
    """Clips together, and one by one the other way round; with the tolerance of numpy's sums, see below."""

    def columns(clips):
        references = {"references": [clip(CLEAN)] * len(clips)} if metric.about.uses_reference else {}
        return {"predictions": clips, **references}

    together = metric.compute(**columns([clip(array) for array in SPOILT.values()]))
    for array in reversed(SPOILT.values()):
        metric.add_batch(**columns([clip(array)]))
    one_by_one = metric.compute()
    for score in metric.about.scales:
        # the last digits of numpy's sums change with the address of what they sum over
        found, expected = one_by_one[f"{score}_per_clip"], together[f"{score}_per_clip"][::-1]
        assert len(found) == 3 and found == pytest.approx(expected, rel=1e-9), score
        assert one_by_one[score] == pytest.approx(together[score], rel=1e-9)


def test_order_and_batches_change_nothing(metric):
    check_order_and_batches(metric)


def test_several_processes_score_as_one(modules, tmp_path):
    """Each of two processes adds its share; the first gathers both (`evaluate`'s own protocol, here two threads)."""

    def batch(names):
        return {"predictions": [clip(SPOILT[name]) for name in names], "references": [clip(CLEAN)] * len(names)}

    def compute(process_id, names):
        options = {"experiment_id": "shared", "cache_dir": str(tmp_path)}
        module = evaluate.load(metric_path("mel_distance"), num_process=2, process_id=process_id, **options)
        return module.compute(**batch(names))

    names = list(SPOILT)
    with ThreadPoolExecutor(2) as pool:
        gathered, nothing = pool.map(compute, (0, 1), (names[:2], names[2:]))
    assert gathered == modules[-1].compute(**batch(names)) and nothing is None


def test_random_raters_of_plcmos_do_not_depend_on_what_came_before():
    metric = load_metric("plcmos")
    first = metric.measure(clip(SPOILT["noise"]))
    np.random.seed(5)
    metric.measure(clip(SPOILT["loss"]))
    assert metric.measure(clip(SPOILT["noise"])) == first


@pytest.mark.parametrize(
    ("name", "inputs"), [("utmos", {"wave": (1, 16000)}), ("nisqa", {"segments": (1, 22, 1, 48, 15)})]
)
def test_networks_in_onnx_files_are_given_what_they_take(name, inputs, monkeypatch):
    """The published networks cannot be had here: one in their place says what came."""
    seen = {}

    class Session:
        def __init__(self, path, options):
            assert path == "network.onnx"

        def run(self, outputs, given):
            seen.update({key: value.shape for key, value in given.items()})
            assert all(value.dtype == np.float32 for value in given.values())
            return [np.array([[3.5, 1.0, 1.0]], np.float32)]

    monkeypatch.setattr("evaluation_dacse.onnx_model.onnxruntime.InferenceSession", Session)
    values, reason = load_metric(f"{name}:network.onnx").measure(clip(CLEAN[:RATE]))
    assert (values, reason, seen) == ({name: 3.5}, None, inputs)


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    """Tiny models of the kinds the model-based metrics listen with, saved as the real ones are."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
        WavLMConfig,
        WavLMForXVector,
        WavLMModel,
    )

    folder = tmp_path_factory.mktemp("listeners")
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (32, 32, 32),
        "conv_kernel": (10, 8, 4),
        "conv_stride": (8, 8, 5),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }
    torch.manual_seed(0)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    WavLMModel(WavLMConfig(**sizes)).save_pretrained(folder / "encoder")
    xvector = {"tdnn_dim": (32, 32), "tdnn_kernel": (5, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 16}
    WavLMForXVector(WavLMConfig(**sizes, **xvector)).save_pretrained(folder / "speaker")
    letters = {letter: number for number, letter in enumerate(["<pad>", "<unk>", "|", *"abcdefgh"])}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = Wav2Vec2CTCTokenizer(
        folder / "vocab.json", pad_token="<pad>", unk_token="<unk>", bos_token=None, eos_token=None
    )
    Wav2Vec2ForCTC(Wav2Vec2Config(**sizes, vocab_size=len(letters), pad_token_id=0)).save_pretrained(folder / "words")
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder / "words")
    for name in ("encoder", "speaker"):
        extractor.save_pretrained(folder / name)
    return folder


def test_speech_bert_score_is_the_mean_of_best_cosines(listeners):
    metric = evaluate.load(metric_path("speech_bert_score"), model=str(listeners / "encoder"), layer=1)
    a, b = metric.hidden_states(SPOILT["noise"][:9000]), metric.hidden_states(CLEAN[:16000])
    best = [max(float(x @ y / (x.norm() * y.norm())) for y in b) for x in a]
    value = metric.score(SPOILT["noise"][:9000], CLEAN[:16000])["speech_bert_score"]
    assert value == pytest.approx(np.mean(best), abs=1e-5)
    same = metric.compute(predictions=[clip(CLEAN)], references=[clip(CLEAN)])
    assert same["speech_bert_score"] == pytest.approx(1.0, abs=1e-5)


def test_speaker_similarity_is_a_cosine(listeners):
    metric = load_metric(f"speaker_similarity:{listeners / 'speaker'}")
    values, _ = metric.measure(clip(SPOILT["noise"][:RATE]), clip(CLEAN))
    a, b = (
        metric.embedding(x)
        for x in (metric.prepare(clip(SPOILT["noise"][:RATE]), ""), metric.prepare(clip(CLEAN), ""))
    )
    assert values["speaker_similarity"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-5)
    assert metric.measure(clip(CLEAN), clip(CLEAN))[0]["speaker_similarity"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("spec", ["speech_bert_score:encoder", "speaker_similarity:speaker", "word_error_rate:words"])
def test_order_and_batches_change_nothing_for_metrics_that_listen_with_a_model(spec, listeners, monkeypatch):
    name, model = spec.split(":")
    metric = load_metric(f"{name}:{listeners / model}")
    metric.layer = 1
    if name == "word_error_rate":  # an untrained recogniser hears no words
        monkeypatch.setattr(metric, "transcribe", lambda x: "the cat " * (1 + int(20 * np.abs(x).max())))
    check_order_and_batches(metric)


def test_word_error_rate_takes_texts_and_recordings(listeners, monkeypatch):
    metric = evaluate.load(metric_path("word_error_rate"), model=str(listeners / "words"))
    assert isinstance(metric.transcribe(CLEAN[:16000]), str)
    heard = {"clean": "the cat sat", "noise": "the bat sat down"}
    monkeypatch.setattr(metric, "transcribe", lambda x: heard["clean" if np.abs(x).max() < 0.5 else "noise"])
    quiet, loud = clip(0.4 * CLEAN / np.abs(CLEAN).max()), clip(CLEAN / np.abs(CLEAN).max())
    texts = metric.compute(predictions=[quiet, loud], references=["the cat sat", "the cat sat"])
    assert texts["wer_per_clip"] == pytest.approx([0, 2 / 3])
    sounds = metric.compute(predictions=[quiet, loud], references=[quiet, quiet])
    assert sounds["wer_per_clip"] == texts["wer_per_clip"]
    assert metric.measure(quiet, " ... ")[1] == "reference without words: left out"
    assert metric.measure(clip(np.zeros_like(CLEAN)), "the cat")[0] == {"wer": 1}
