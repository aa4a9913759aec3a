"""The trainer computes the loss it should, whatever the batch shape, and a resumed run is the uninterrupted one."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed import HashStore
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import TrainerState

from modeling_dacse import DacSeForEnhancement
from processing_dacse import DacSeProcessor
from tests.tiny import tiny_codec, tiny_model
from tests.training.tiny_tokens import Rows, logged_losses, tiny_trainer
from training_dacse.lm import callbacks
from training_dacse.lm.anchors import Anchor
from training_dacse.lm.arguments import DacSeTrainingArguments
from training_dacse.lm.listening import AudioCallback, enhance_codes
from training_dacse.lm.strategy import Strategy
from training_dacse.tokens.collate import PackingCollator, TokenCollator

ROOT = Path(__file__).parents[2]
PROCESSOR = DacSeProcessor.from_codec(tiny_codec())


def weights(run):
    return torch.cat([weight.detach().flatten() for weight in run.model.parameters()])


def test_the_loss_is_the_mean_over_clean_tokens_of_rows_of_any_length(tmp_path):
    rows = Rows(6, frames=(2, 4, 3))
    run = tiny_trainer(tmp_path, rows, per_device_eval_batch_size=6)
    metrics = run.evaluate()
    batch, total, count = TokenCollator(run.model.config)([rows[i] for i in range(6)]), 0.0, 0
    per_task = {0: [], 1: []}
    for row in range(6):  # one at a time, no padding, every token
        length = int(batch["attention_mask"][row].sum())
        ids, start = batch["input_ids"][row, :length], length // 2 + 1
        log_probabilities = run.model(ids[None]).logits[0].log_softmax(-1)
        row_loss = [-log_probabilities[position - 1, ids[position]].item() for position in range(start, length)]
        total, count = total + sum(row_loss), count + len(row_loss)
        per_task[row % 2] += row_loss
    assert metrics["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    for number, task in enumerate(Rows.tasks):
        assert metrics[f"eval_loss/{task}"] == pytest.approx(sum(per_task[number]) / len(per_task[number]), rel=1e-5)


def test_training_lowers_the_loss_and_logs_tasks_and_codebooks(tmp_path):
    run = tiny_trainer(tmp_path, max_steps=30)
    run.train()
    history = [entry for entry in run.state.log_history if "loss" in entry]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert {"loss/noise", "loss/room", "accuracy/codebook_1", "accuracy/codebook_3"} <= set(history[-1])
    assert history[-1]["accuracy/codebook_1"] > history[0]["accuracy/codebook_1"]


def test_four_accumulated_batches_of_one_are_one_batch_of_four(tmp_path):
    rows = Rows(16, frames=(2, 4))
    one, four = (
        tiny_trainer(
            tmp_path,
            rows,
            tiny_model(attention_dropout=0.0),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
        )
        for size in (4, 1)
    )
    for run in (one, four):
        run.train()
    assert logged_losses(one) == pytest.approx(logged_losses(four), rel=1e-4)
    # float32 sums in another order, through Adam's division by small numbers
    torch.testing.assert_close(weights(one), weights(four), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"batching": "length", "dataloader_num_workers": 1},
        {"batching": "packed", "weighting": "uncertainty"},
        {"sampling": {"kind": "easy_first", "epochs": 2}, "weighting": "gradnorm"},
        {"sampling": "balanced", "weighting": "dwa"},
        {"sampling": {"kind": "tasks_in_turn", "epochs": 2}, "gradient_accumulation_steps": 2},
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, settings, monkeypatch):
    saving = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "per_device_train_batch_size": 2}
    rows = Rows(9, frames=(2, 4, 3))

    def run():  # with dropout: the state of the random numbers must come back too
        return tiny_trainer(tmp_path / "run", rows, tiny_model(attention_dropout=0.1), **(saving | settings))

    whole = run()
    whole.train()
    resumed = run()
    read = []
    get = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert len(logged_losses(whole)) == 6 and logged_losses(resumed) == logged_losses(whole)
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(resumed.strategy.weighting.weights, whole.strategy.weighting.weights)
    assert resumed.stream.state_dict() == whole.stream.state_dict()
    if not settings.get("dataloader_num_workers") and settings.get("batching") != "packed":
        each = settings.get("gradient_accumulation_steps", 1)
        assert len(read) <= 3 * 2 * each + 1  # what three steps are trained on, and nothing before


@pytest.mark.parametrize(("settings", "steps"), [({"max_steps": 3}, 3), ({"max_steps": 9, "max_seconds": 1e-6}, 1)])
def test_a_run_that_has_ended_and_is_started_again_stays_as_it_is(tmp_path, settings, steps):
    whole, again = (tiny_trainer(tmp_path / "run", **settings, save_steps=3, save_strategy="steps") for _ in range(2))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{steps}"))
    assert whole.state.global_step == again.state.global_step == steps
    assert torch.equal(weights(again), weights(whole))


def test_an_epoch_is_as_many_steps_as_it_has_batches(tmp_path):
    run = tiny_trainer(tmp_path, Rows(10), max_steps=-1, num_train_epochs=2, per_device_train_batch_size=4)
    run.train()
    assert run.state.global_step == 6 and run.state.log_history[-1]["epoch"] == 2.0


def test_a_nan_stops_the_run_before_a_checkpoint(tmp_path):
    run = tiny_trainer(tmp_path, save_steps=1, save_strategy="steps", logging_steps=3)
    with torch.no_grad():
        run.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*learning rate below 0\.01"):
        run.train()
    assert not list(Path(tmp_path).glob("checkpoint-*"))


def test_a_wall_clock_budget_ends_the_run_and_counts_over_restarts(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: 0.05 * next(ticks)))  # a step takes 50 ms
    settings = {"max_steps": 10_000, "max_seconds": 1.5, "save_steps": 10_000, "save_strategy": "steps"}
    run = tiny_trainer(tmp_path, **settings)
    run.train()
    steps = run.state.global_step
    assert steps == 30
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates[-1] < 0.2 * max(rates)
    again = tiny_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == steps  # nothing was left


def test_a_compiled_model_trains_enhances_and_is_saved_as_a_plain_one(tmp_path):
    noisy, runs = Rows(1)[0]["noisy"], []
    for name, compiled in (("plain", False), ("compiled", True)):
        settings = {"torch_compile": compiled, "torch_compile_backend": "eager" if compiled else None}
        run = tiny_trainer(tmp_path / name, model=tiny_model(attention_dropout=0.0), **settings)
        run.train()
        run.save_model()
        saved = DacSeForEnhancement.from_pretrained(tmp_path / name)
        assert torch.equal(enhance_codes(run.model, PROCESSOR, noisy), enhance_codes(saved, PROCESSOR, noisy))
        runs.append(run)
    assert [hasattr(run.model_wrapped, "_orig_mod") for run in runs] == [False, True]
    assert logged_losses(runs[1]) == pytest.approx(logged_losses(runs[0]), rel=1e-4)


def test_clips_are_enhanced_and_logged_at_every_evaluation(tmp_path):
    rows = Rows(2)
    run = tiny_trainer(tmp_path, rows, max_steps=2, eval_strategy="steps", eval_steps=1)
    run.add_callback(AudioCallback({"clip": rows[0]}, PROCESSOR, tmp_path))
    run.train()
    events = EventAccumulator(str(tmp_path / "audio"))
    events.Reload()
    assert set(events.Tags()["audio"]) == {"clip/noisy", "clip/clean", "clip/enhanced"}
    assert [event.step for event in events.Audio("clip/enhanced")] == [1, 2]
    assert "clip/enhanced/spectrogram" in events.Tags()["images"]
    assert enhance_codes(run.model, PROCESSOR, rows[0]["noisy"]).shape == rows[0]["noisy"].shape


def test_a_model_in_shards_is_saved_with_its_own_code_and_enhances(tmp_path):
    plain, run, noisy = tiny_model(), tiny_trainer(tmp_path), Rows(1)[0]["noisy"]
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        fully_shard(run.model, mesh=init_device_mesh("cpu", (1,)))
        assert torch.equal(enhance_codes(run.model, PROCESSOR, noisy), enhance_codes(plain, PROCESSOR, noisy))
        whole = get_model_state_dict(run.model, options=StateDictOptions(full_state_dict=True))
        run._save(str(tmp_path / "saved"), whole)
        assert isinstance(run.model, FSDPModule)
    finally:
        torch.distributed.destroy_process_group()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_dacse.DacSeForEnhancement"
    assert (tmp_path / "saved" / "modeling_dacse.py").exists()
    loaded = DacSeForEnhancement.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_bf16_is_used_where_the_processor_has_it(tmp_path, caplog):
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    args = DacSeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True)
    assert args.bf16 == supported
    assert ("training in float32" in caplog.text) != supported


def test_metrics_are_json(tmp_path):
    run = tiny_trainer(tmp_path)
    run.save_metrics("eval", run.evaluate())
    assert "eval_loss/noise" in json.loads((tmp_path / "eval_results.json").read_text())


def test_rows_packed_into_one_are_the_rows_one_by_one(tmp_path):
    rows, model = Rows(5, frames=(2, 4, 3)), tiny_model(attention_dropout=0.0)
    examples = [rows[index] for index in range(5)]
    batches = TokenCollator(model.config)(examples), PackingCollator(model.config)(examples)
    objective = tiny_trainer(tmp_path, rows, model).objective
    losses = [objective(model, batch) for batch in batches]
    for number in range(2):  # of each task, in the order of the tokens
        padded, packed = (one.loss[one.task == number] for one in losses)
        torch.testing.assert_close(packed, padded)
    assert torch.equal(*(one.likeliest for one in losses))


@pytest.mark.parametrize("collator", [TokenCollator, PackingCollator])
def test_the_model_compiles_without_a_break(collator):
    model, rows = tiny_model(attention_dropout=0.0), Rows(4, frames=(2, 4))
    batch = collator(model.config)([rows[index] for index in range(4)])
    inputs = {
        name: batch[name]
        for name in ("input_ids", "position_ids", "attention_mask", "logits_to_keep")
        if name in batch
    }
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, model(**inputs, use_cache=False).logits)


def test_an_anchor_pulls_before_gradients_are_clipped(tmp_path):
    """A pull that came after would be as large as it likes."""
    model = tiny_model(attention_dropout=0.0)
    strategy = Strategy.from_settings(Rows.tasks, {"kind": "shuffled"}, {"kind": "equal"}, Anchor(model, 1e6))
    run = tiny_trainer(tmp_path, model=model, strategy=strategy, max_grad_norm=1e-3, max_steps=3)
    norms = []

    class Watch(callbacks.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            norms.append(torch.stack([weight.grad.norm() for weight in model.parameters()]).norm().item())

    run.add_callback(Watch())
    run.train()
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)
    grown = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    assert grown[-1] > 100 * grown[0]  # the pull has begun


def test_what_needs_whole_weights_is_refused_where_they_are_in_shards():
    model = tiny_model()
    anchored = Strategy.from_settings(Rows.tasks, {"kind": "shuffled"}, {"kind": "equal"}, Anchor(model, 1.0))
    with pytest.raises(
        ValueError, match="an anchor needs whole weights in float32; FSDP keeps them in shards: use DDP"
    ):
        anchored.refuse_shards("FSDP")
    with pytest.raises(ValueError, match="gradnorm needs whole layers; DeepSpeed keeps them in shards"):
        Strategy.from_settings(Rows.tasks, {"kind": "shuffled"}, {"kind": "gradnorm"}).refuse_shards("DeepSpeed")
    Strategy.from_settings(Rows.tasks, {"kind": "balanced"}, {"kind": "dwa"}).refuse_shards("FSDP")


EVALUATE = """
import json, os, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.training.test_trainer import losses_of_five
losses = losses_of_five(sys.argv[1], 2)
Path(sys.argv[1], os.environ["RANK"] + ".json").write_text(json.dumps(losses))
torch.distributed.destroy_process_group()
"""


def losses_of_five(folder, batch_size):
    """What is measured on five rows, in this process or as one of several."""
    run = tiny_trainer(folder, Rows(5, frames=(4, 2, 6, 3, 5)), per_device_eval_batch_size=batch_size)
    return {name: value for name, value in run.evaluate().items() if "loss" in name or "accuracy" in name}


def test_an_evaluation_does_not_depend_on_processes_or_their_padding(tmp_path):
    together, alone = (losses_of_five(tmp_path, size) for size in (5, 1))
    assert {"eval_loss", "eval_loss/noise", "eval_accuracy/codebook_3"} <= set(together)
    # padding and the order of float32 sums inside attention change the last digits
    assert alone == pytest.approx(together, rel=1e-5)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "evaluate.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shared = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert shared[0] == shared[1] == pytest.approx(together, rel=1e-5)


def test_the_share_of_a_device_s_peak_is_logged_where_it_is_known(tmp_path):
    run = tiny_trainer(tmp_path, peak_tflops=1.0)
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    assert entry["mfu"] == entry["tflops"] > 0 and entry["tokens_per_second"] > 0


def test_runs_report_to_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged = []
    monkeypatch.setattr(trackio, "log", lambda values, **kwargs: logged.append(values))
    rows = Rows(2)
    callback = AudioCallback({"clip": rows[0]}, PROCESSOR, tmp_path)
    callback.on_evaluate(SimpleNamespace(report_to=["trackio"]), TrainerState(global_step=1), None, tiny_model())
    assert set(logged[0]) == {"clip/noisy", "clip/clean", "clip/enhanced"}


def test_importing_the_room_leaves_the_plots_of_others_alone():
    code = "import matplotlib; matplotlib.use('svg')\n"
    code += "import training_dacse.lm.stages, training_dacse.experiments.results\n"
    code += "assert matplotlib.get_backend() == 'svg', matplotlib.get_backend()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
