"""Cards say what a checkpoint is, what its publisher states, and that the rest is not stated."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

import evaluation_dacse.report
from hub_upload.card import adapter_card, model_card
from hub_upload.evaluation import score_table, stage_run
from hub_upload.facts import DataSource, Evaluation, Facts, HeldOutLoss, Sample
from tests.tiny import tiny_pipeline

FACTS = Facts(
    license="cc-by-4.0",
    base_model="org/base",
    language=["en"],
    training_data=[
        DataSource("Rain and talk", "CC0-1.0", "user/rain"),
        DataSource("Own speech", "all rights kept"),
    ],
    compute="one minute on two CPU cores",
    limits=["It has heard one voice only."],
)


def summary() -> dict:
    """As `dacse evaluate` writes it, of two systems and two metrics."""

    def scores(ovrl: float, pesq: float | None) -> dict:
        table = {"dnsmos_ovrl": {"mean": ovrl, "low": ovrl - 0.1, "high": ovrl + 0.1, "count": 3, "difference": {}}}
        return table | {
            "pesq": {"mean": pesq, "low": None, "high": None, "count": int(pesq is not None), "difference": {}}
        }

    return {
        "test_set": {"name": "rain", "hub_id": None, "clips": 3, "checksum": "0123abcd", "tasks": {"noise": 3}},
        "metrics": {
            "dnsmos_ovrl": {"label": "OVRL", "higher_is_better": True},
            "pesq": {"label": "PESQ", "higher_is_better": True},
        },
        "systems": {"noisy": {"overall": scores(2.0, 1.5)}, "dacse:checkpoint": {"overall": scores(2.5, None)}},
    }


def write_run(folder, **test_set) -> None:
    """The part of a run's folder that a repository takes over."""
    found = summary()
    found["test_set"] |= test_set
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def enhance():
    return tiny_pipeline()


def card_of(enhance, facts, folder=None, name="org/dac-se1", **options) -> ModelCard:
    with TemporaryDirectory() as place:
        folder = folder or Path(place)
        enhance.save_pretrained(folder)
        return ModelCard(model_card(name, enhance.model, enhance.processor, facts, folder, **options))


def test_the_metadata_is_what_the_hub_searches_by(enhance):
    data = card_of(enhance, FACTS).data
    assert (data.pipeline_tag, data.library_name) == ("audio-to-audio", "transformers")
    assert (data.license, data.base_model, data.language) == ("cc-by-4.0", "org/base", ["en"])
    assert data.datasets == ["user/rain"] and "dacse" in data.tags


def test_the_body_states_the_facts_and_the_grid(enhance):
    text = card_of(enhance, FACTS).text
    for stated in [
        "| Rain and talk | CC0-1.0 |",
        "| Own speech | all rights kept |",
        "- It has heard one voice only.",
        "one minute on two CPU cores",
        "3 codebooks of 16 codes, 1000.00 frames/s, 3000.0 tokens/s",
        "64 tokens: windows of at most 0.01 s",
        "clean\n8 kHz speech",
    ]:
        assert stated in text


def test_a_model_of_one_window_says_so():
    enhance = tiny_pipeline()
    enhance.processor.window_frames = 5
    assert "windows of just 0.01 s" in card_of(enhance, FACTS).text  # 5 frames of 1 ms, rounded


def test_a_model_that_keeps_the_recording_says_so(enhance):
    assert "keep_recording" not in card_of(enhance, FACTS).text
    keeping = tiny_pipeline()
    keeping.processor.keep_recording = True
    assert "`--no-keep-recording`" in card_of(keeping, FACTS).text


def test_what_is_not_stated_is_said_not_to_be(enhance):
    card = card_of(enhance, Facts())
    for subject in ("what these weights were trained on", "a licence for these weights", "the compute"):
        assert f"The publisher has not stated {subject}" in card.text
    assert "No evaluation was published" in card.text and "## Listen" not in card.text
    assert card.data.license is None and card.data.eval_results is None


def test_samples_are_linked_before_and_after(enhance):
    facts = Facts(samples=[Sample("samples/rain.noisy.flac", "Rain, by Ana (CC0)")])
    card = card_of(enhance, facts, files_at="https://hub/org/dac-se1/resolve/main/")
    for side in ("noisy", "enhanced"):
        player = f'src="https://hub/org/dac-se1/resolve/main/samples/rain.{side}.flac"></audio>'
        assert player in card.text
    assert card.data.widget == [{"example_title": "Rain, by Ana (CC0)", "src": "samples/rain.noisy.flac"}]


def test_rivals_are_heard_beside_the_model_from_the_same_recordings(enhance):
    rain = Sample("rain.wav", "Rain", {"RNNoise": "a.wav", "DeepFilterNet": "b.wav"})
    wind = Sample("wind.wav", "Wind", {"DeepFilterNet": "c.wav"})
    table = [line for line in card_of(enhance, Facts(samples=[rain, wind])).text.splitlines() if line.startswith("| ")]
    header, rain_row, wind_row = table[table.index("| recording | before | dac-se1 | RNNoise | DeepFilterNet |") :][:3]
    assert [cells.count("|") for cells in (header, rain_row, wind_row)] == [6, 6, 6]
    assert rain_row.count("<audio") == 4 and "samples/rain.rnnoise.flac" in rain_row
    assert wind_row.count("<audio") == 3 and wind_row.split("|")[4].strip() == ""


def test_an_evaluation_becomes_a_table_with_its_rivals_and_a_model_index(enhance, tmp_path):
    write_run(tmp_path / "run")
    facts = Facts(evaluations=[Evaluation("run", "dacse:checkpoint")])
    card = card_of(enhance, facts, tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines()]
    assert ["system", "OVRL ↑", "PESQ ↑"] in rows
    assert ["noisy", "2.00 [1.90, 2.10]", "1.50"] in rows
    assert ["**dac-se1**", "**2.50 [2.40, 2.60]**", "**–**"] in rows
    (result,) = card.data.eval_results  # a score without a value is left out
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("dnsmos_ovrl", 2.5, "rain")


def test_the_table_is_that_of_the_evaluation_room():
    tables = score_table(summary(), "noisy", "noisy"), evaluation_dacse.report.score_table(summary(), "overall")
    ours, theirs = (re.sub(r"[* -]+", " ", table) for table in tables)  # but for bold cells and the room they take
    assert ours == theirs.replace(" (0 of 1 clips)", "")


def test_a_run_on_a_test_set_of_the_hub_is_kept_for_its_leaderboard(tmp_path):
    write_run(tmp_path / "run", hub_id="org/rain")
    (tmp_path / "out").mkdir()
    assert stage_run(tmp_path / "run", "dacse:checkpoint", tmp_path / "out") == "evaluation/rain"
    assert (tmp_path / "out" / "evaluation" / "rain" / "summary.json").exists()
    entries = yaml.safe_load((tmp_path / "out" / ".eval_results" / "rain.yaml").read_text())
    notes = "3 clips, checksum 0123abcd"
    assert entries == [{"dataset": {"id": "org/rain", "task_id": "dnsmos_ovrl"}, "value": 2.5, "notes": notes}]
    assert parse_eval_result_entries(entries)[0].dataset_id == "org/rain"


def test_a_system_that_was_not_evaluated_is_refused(tmp_path):
    write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="no system 'dacse'; there are noisy, dacse:checkpoint"):
        stage_run(tmp_path / "run", "dacse", tmp_path)
    with pytest.raises(ValueError, match="there is no summary.json"):
        stage_run(tmp_path, "dacse", tmp_path)


def test_the_card_of_an_adapter_names_its_base_its_task_and_its_size():
    card = ModelCard(adapter_card("org/rain", 8, 1_234_567, {}, Facts(base_model="org/base", task="rain"), None))
    assert (card.data.base_model, card.data.library_name) == ("org/base", "peft")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "LoRA of rank 8, 1.2 MB" in card.text and "made for **rain**" in card.text
    plain = adapter_card(
        "org/rain", 8, 1, {"keep_recording": True, "window_frames": 86}, Facts(base_model="o/b"), None
    )
    assert "made for **" not in plain and "`keep_recording=True`, `window_frames=86`." in plain


def test_an_adapters_losses_are_laid_beside_those_of_its_base():
    facts = Facts(base_model="org/base", losses=[HeldOutLoss("rain", 3.21987, 2.5)])
    assert "| rain | 3.220 | 2.500 |" in adapter_card("org/rain", 8, 1, {}, facts, None)


def test_facts_are_read_as_they_are_written(tmp_path):
    FACTS.write(tmp_path)
    assert Facts.read(tmp_path) == FACTS
    Facts().write(tmp_path / "nowhere")  # nothing stated, nothing written
    assert Facts.read(tmp_path / "nowhere") == Facts()
    (tmp_path / "card.yaml").write_text("# nothing yet\n")
    assert Facts.read(tmp_path) == Facts()


def test_the_example_states_every_field(tmp_path):
    example = (Path(__file__).parents[1] / "examples" / "configs" / "card.yaml").read_text()
    for commented, told in [("# task:", "task:"), ("# losses:", "losses:"), ("#   - ", "  - ")]:
        example = example.replace(commented, told)
    (tmp_path / "card.yaml").write_text(example)
    assert all(asdict(Facts.read(tmp_path)).values())


@pytest.mark.parametrize("text", ["licence: mit", "training_data: [{name: Rain}]", "samples: [{path: a.wav}]"])
def test_a_card_yaml_with_wrong_fields_is_refused(tmp_path, text):
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(ValueError, match="card.yaml: .*its fields are license, base_model"):
        Facts.read(tmp_path)
