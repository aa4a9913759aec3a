"""The trainer computes the loss it should, whatever the batch shape, and a resumed run is the uninterrupted one."""

import itertools
import json
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
from processing_dacse.codec_dacse import code_vectors
from tests.tiny import tiny_codec, tiny_model
from training_dacse import callbacks
from training_dacse.lm.arguments import DacSeTrainingArguments, DataArguments
from training_dacse.tokens.collate import IGNORED, TokenCollator
from training_dacse.lm.listening import AudioCallback, enhance_codes
from training_dacse.lm.runs import make_model
from training_dacse.lm.trainer import DacSeTrainer, spoil_frames


class Rows(torch.utils.data.Dataset):
    """Random codes whose clean side is a copy of the noisy one: something to learn."""

    tasks = ["noise", "room"]

    def __init__(self, count: int, frames: tuple[int, ...] = (4,)):
        generator = torch.Generator().manual_seed(0)
        self.codes = [torch.randint(16, (3, frames[i % len(frames)]), generator=generator) for i in range(count)]
        self.task_numbers, self.snr_db = torch.arange(count) % 2, torch.linspace(0, 10, count)

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        return {"noisy": self.codes[index], "clean": self.codes[index], "task": int(self.task_numbers[index])}


def trainer(folder, rows=None, model=None, all_clips=None, **settings):
    settings = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"} | settings
    args = DacSeTrainingArguments(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        **settings,
    )
    rows, model = rows or Rows(16), model or tiny_model()
    collator = TokenCollator(model.config)
    own = {"train_dataset": rows, "eval_dataset": rows, "all_clips": all_clips}
    return DacSeTrainer(model=model, args=args, tasks=Rows.tasks, data_collator=collator, **own)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def weights(run):
    return torch.cat([weight.detach().flatten() for weight in run.model.parameters()])


def test_the_loss_is_the_mean_over_clean_tokens_of_rows_of_any_length(tmp_path):
    rows = Rows(6, frames=(2, 4, 3))
    run = trainer(tmp_path, rows, per_device_eval_batch_size=6)
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


def test_a_model_stored_in_half_precision_is_trained_in_full(tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path)
    data = DataArguments(data="speech", model=str(tmp_path))
    assert make_model(data, tiny_codec()).dtype == torch.float32


def test_losses_of_trainers_of_parts_are_those_of_all_clips(tmp_path):
    """With `logit_adjustment` the loss depends on how common codes are said to be."""
    every, losses = Rows(16), []
    for rows in (every, Rows(3), Rows(5)):
        part = trainer(tmp_path, rows, all_clips=every, logit_adjustment=1.0)
        losses.append(part.evaluate(every)["eval_loss"])
    assert losses[0] == losses[1] == losses[2]
    assert trainer(tmp_path, Rows(3), logit_adjustment=1.0).evaluate(every)["eval_loss"] != losses[0]


def test_spoiled_frames_are_whole_noisy_ones_and_not_trained_on():
    config, generator = tiny_model().config, torch.Generator().manual_seed(1)
    frames, examples = (4, 7, 5), []
    for count in frames:
        noisy, clean = torch.randint(16, (2, 3, count), generator=generator)
        examples.append({"noisy": noisy, "clean": clean, "task": 0})
    batch = TokenCollator(config)(examples)
    torch.manual_seed(0)
    ids, labels = spoil_frames(batch["input_ids"], batch["labels"], config.num_codebooks, most=1.0)
    spoiled = labels != batch["labels"]
    assert (labels[spoiled] == IGNORED).all() and torch.equal(labels[~spoiled], batch["labels"][~spoiled])
    assert torch.equal(ids[~spoiled], batch["input_ids"][~spoiled])
    for row, count in enumerate(frames):
        noisy, clean = slice(1, 1 + 3 * count), slice(2 + 3 * count, 2 + 6 * count)
        of_frames = spoiled[row, clean].view(count, 3)
        assert of_frames.any(1).equal(of_frames.all(1)) and 0 < of_frames.sum() == spoiled[row].sum()
        assert torch.equal(ids[row, clean][of_frames.flatten()], ids[row, noisy][of_frames.flatten()])


def test_frames_are_spoiled_in_training_alone(tmp_path):
    model = tiny_model()
    runs = [trainer(tmp_path, Rows(4), model, spoiled_frames=share, seed=1) for share in (0.0, 1.0)]
    assert runs[0].evaluate()["eval_loss"] == runs[1].evaluate()["eval_loss"]
    rows = Rows(200)
    batch = runs[0].data_collator([rows[index] for index in range(len(rows))])
    labels = (batch["labels"] != IGNORED).sum()
    model.train()
    plain, spoiled = (run.compute_loss(model, dict(batch), num_items_in_batch=labels).item() for run in runs)
    assert spoiled != plain
    assert spoiled == pytest.approx(plain, rel=0.15)  # a mean of what is left, up to the labels of [eos]


def test_training_lowers_the_loss_and_logs_tasks_and_codebooks(tmp_path):
    run = trainer(tmp_path, max_steps=30)
    run.train()
    history = [entry for entry in run.state.log_history if "loss" in entry]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert {"loss/noise", "loss/room", "accuracy/codebook_1", "accuracy/codebook_3"} <= set(history[-1])
    assert history[-1]["accuracy/codebook_1"] > history[0]["accuracy/codebook_1"]


def test_four_accumulated_batches_of_one_are_one_batch_of_four(tmp_path):
    rows = Rows(16, frames=(2, 4))
    one, four = (
        trainer(
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
    assert losses(one) == pytest.approx(losses(four), rel=1e-4)
    # float32 sums in another order, through Adam's division by small numbers
    torch.testing.assert_close(weights(one), weights(four), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("balancing", ["none", "uncertainty", "gradnorm", "dwa"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, balancing):
    settings = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "per_device_train_batch_size": 4}
    settings |= {"balancing": balancing, "balanced_tasks": True, "curriculum_steps": 5}

    def model():  # with dropout: the state of the random numbers must come back too
        return tiny_model(attention_dropout=0.1)

    whole = trainer(tmp_path / "run", model=model(), **settings)
    whole.train()
    resumed = trainer(tmp_path / "run", model=model(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert len(losses(whole)) == 6 and losses(resumed) == losses(whole)
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(resumed.balancing.weights, whole.balancing.weights)
    if balancing in ("uncertainty", "gradnorm"):  # a period of dwa is longer than this run
        assert not torch.equal(whole.balancing.weights, torch.ones(2))


def test_a_nan_stops_the_run_before_a_checkpoint(tmp_path):
    run = trainer(tmp_path, save_steps=1, save_strategy="steps", logging_steps=3)
    with torch.no_grad():
        run.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 .*learning rate below 0\.01"):
        run.train()
    assert not list(Path(tmp_path).glob("checkpoint-*"))


def test_a_wall_clock_budget_ends_the_run_and_counts_over_restarts(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: 0.05 * next(ticks)))  # a step takes 50 ms
    settings = {"max_steps": 10_000, "max_seconds": 1.5, "save_steps": 10_000, "save_strategy": "steps"}
    run = trainer(tmp_path, **settings)
    run.train()
    steps = run.state.global_step
    assert steps == 30
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates[-1] < 0.2 * max(rates)
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == steps + 1  # nothing was left


def test_a_compiled_model_trains_enhances_and_is_saved_as_a_plain_one(tmp_path):
    noisy, runs = Rows(1)[0]["noisy"], []
    for name, compiled in (("plain", False), ("compiled", True)):
        settings = {"torch_compile": compiled, "torch_compile_backend": "eager" if compiled else None}
        run = trainer(tmp_path / name, model=tiny_model(attention_dropout=0.0), **settings)
        run.train()
        run.save_model()
        saved = DacSeForEnhancement.from_pretrained(tmp_path / name)
        assert torch.equal(enhance_codes(run.model, noisy), enhance_codes(saved, noisy))
        runs.append(run)
    assert [hasattr(run.model_wrapped, "_orig_mod") for run in runs] == [False, True]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)


def test_clips_are_enhanced_and_logged_at_every_evaluation(tmp_path):
    rows = Rows(2)
    run = trainer(tmp_path, rows, max_steps=2, eval_strategy="steps", eval_steps=1)
    run.add_callback(AudioCallback({"clip": rows[0]}, tiny_codec(), tmp_path))
    run.train()
    events = EventAccumulator(str(tmp_path / "audio"))
    events.Reload()
    assert set(events.Tags()["audio"]) == {"clip/noisy", "clip/clean", "clip/enhanced"}
    assert [event.step for event in events.Audio("clip/enhanced")] == [1, 2]
    assert "clip/enhanced/spectrogram" in events.Tags()["images"]
    assert enhance_codes(run.model, rows[0]["noisy"]).shape == rows[0]["noisy"].shape


def test_clips_are_enhanced_as_the_model_s_configuration_says(tmp_path, monkeypatch):
    model, codec, row, shown = tiny_model(minimum_risk=True), tiny_codec(), Rows(1)[0], {}
    callback = AudioCallback({"clip": row}, codec, tmp_path)
    monkeypatch.setattr(callback, "show", lambda name, codes, step: shown.update({name: codes}))
    callback.on_evaluate(None, TrainerState(global_step=1), None, model)
    assert torch.equal(shown["clip/enhanced"], enhance_codes(model, row["noisy"], code_vectors(codec)))
    assert not torch.equal(shown["clip/enhanced"], enhance_codes(model, row["noisy"]))


def test_a_model_in_shards_is_saved_with_its_own_code_and_enhances(tmp_path):
    plain, run, noisy = tiny_model(), trainer(tmp_path), Rows(1)[0]["noisy"]
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        fully_shard(run.model, mesh=init_device_mesh("cpu", (1,)))
        assert torch.equal(enhance_codes(run.model, noisy), enhance_codes(plain, noisy))
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


@pytest.mark.parametrize("setting", [{"balanced_tasks": True}, {"curriculum_steps": 5}])
def test_an_order_that_needs_a_cache_is_refused_without_one(tmp_path, setting):
    rows = Rows(4)
    del rows.task_numbers
    with pytest.raises(ValueError, match="leave on_the_fly and stream out"):
        trainer(tmp_path, rows, **setting)


def test_metrics_are_json(tmp_path):
    run = trainer(tmp_path)
    run.save_metrics("eval", run.evaluate())
    assert "eval_loss/noise" in json.loads((tmp_path / "eval_results.json").read_text())
