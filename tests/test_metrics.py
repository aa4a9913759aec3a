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

from evaluation_dacse.metrics import METRICS, MODEL_METRICS, OFFLINE_METRICS, load_metric, metric_class, metric_path

GOLDENS = Path(__file__).parent / "goldens"


def spoilt_clips():
    """The recordings the stored values were computed from, by their generator."""
    spec = importlib.util.spec_from_file_location("make_metric_values", GOLDENS / "make_metric_values.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.clips()


CLEAN, SPOILT, RATE = spoilt_clips()
VALUES = json.loads((GOLDENS / "metric_values.json").read_text())
metric = pytest.fixture(scope="module", params=OFFLINE_METRICS)(lambda request: load_metric(request.param))


def clip(array, rate=RATE):
    return {"array": array, "sampling_rate": rate}


def test_every_metric_file_is_listed():
    files = {path.stem for path in Path(metric_path("")).parent.glob("*.py")} - {"__init__", "waveform_metric"}
    assert files == set(METRICS)
    assert len(METRICS) == 10 and set(OFFLINE_METRICS) | set(MODEL_METRICS) == set(METRICS)


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
    spoilt = SPOILT["loss" if "plcmos" in metric.scales else "noise"]
    worse = metric.measure(clip(spoilt), clip(CLEAN))[0]
    for name, scale in metric.scales.items():
        assert (better[name] > worse[name]) == scale.higher_is_better, name
        for value in (better[name], worse[name]):
            assert scale.lowest <= value <= scale.highest, name


def test_silence_and_short_clips_are_nan_with_a_reason(metric):
    silent, short = np.zeros(RATE, np.float32), CLEAN[:100]
    for prediction in (silent, short):
        values, reason = metric.measure(clip(prediction), clip(CLEAN[: len(prediction)]))
        assert all(math.isnan(value) for value in values.values())
        assert reason.startswith(("silent prediction", "prediction shorter than"))


def test_stoi_of_too_little_speech_is_nan():
    nearly_silent = CLEAN[:RATE].copy()
    nearly_silent[RATE // 10 :] *= 1e-4
    values, reason = load_metric("stoi").measure(clip(nearly_silent), clip(nearly_silent))
    assert math.isnan(values["stoi"]) and reason == "less than 0.4 s of speech"


def test_perfect_si_sdr_is_not_a_number_but_a_reason():
    values, reason = load_metric("si_sdr").measure(clip(0.5 * CLEAN), clip(CLEAN))
    assert math.isnan(values["si_sdr"]) and reason == "prediction is the reference: no distortion to compare with"


def test_clips_of_different_length_or_shape_are_an_error():
    metric = load_metric("si_sdr")
    with pytest.raises(ValueError, match="clips of one length"):
        metric.measure(clip(CLEAN[:-1]), clip(CLEAN))
    with pytest.raises(ValueError, match="mono"):
        metric.measure(clip(CLEAN[None]), clip(CLEAN))


def test_unknown_metric_is_named():
    with pytest.raises(ValueError, match="unknown metric 'pesk'; known are dnsmos"):
        metric_class("pesk")


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
    assert result["pesq_unscorable"] == {"silent prediction": 1}
    for score in ("pesq", "stoi", "estoi", "si_sdr", "mel_distance"):
        expected = [VALUES[name][score] for name in SPOILT]
        assert result[score] == pytest.approx(np.mean(expected), abs=1e-4)
        assert result[f"{score}_per_clip"][:3] == pytest.approx(expected, abs=1e-4)


def check_order_and_batches(metric):
    """Clips together, and one by one the other way round; with the tolerance of numpy's sums, see below."""

    def columns(clips):
        references = {"references": [clip(CLEAN)] * len(clips)} if metric.uses_reference else {}
        return {"predictions": clips, **references}

    together = metric.compute(**columns([clip(array) for array in SPOILT.values()]))
    for array in reversed(SPOILT.values()):
        metric.add_batch(**columns([clip(array)]))
    one_by_one = metric.compute()
    for score in metric.scales:
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
    metric = metric_class(name)(model=str(listeners / model), **({"layer": 1} if model == "encoder" else {}))
    if name == "word_error_rate":  # an untrained recogniser hears no words
        monkeypatch.setattr(metric, "transcribe", lambda x: "the cat " * (1 + int(20 * np.abs(x).max())))
    check_order_and_batches(metric)


def test_word_error_rate_takes_texts_and_recordings(listeners, monkeypatch):
    metric = evaluate.load(metric_path("word_error_rate"), model=str(listeners / "words"))
    assert isinstance(metric.transcribe(CLEAN[:16000]), str)
    heard = {"clean": "The cat, sat.", "noise": "the bat sat down"}
    monkeypatch.setattr(metric, "transcribe", lambda x: heard["clean" if np.abs(x).max() < 0.5 else "noise"])
    quiet, loud = clip(0.4 * CLEAN / np.abs(CLEAN).max()), clip(CLEAN / np.abs(CLEAN).max())
    texts = metric.compute(predictions=[quiet, loud], references=["the cat sat", "the cat sat"])
    assert texts["wer_per_clip"] == pytest.approx([0, 2 / 3])
    sounds = metric.compute(predictions=[quiet, loud], references=[quiet, quiet])
    assert sounds["wer_per_clip"] == texts["wer_per_clip"]
    assert metric.measure(quiet, " ... ")[1] == "no words in the reference"
