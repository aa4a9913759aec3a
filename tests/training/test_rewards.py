"""Stage 3: log-probabilities are those of the grid, losses those of the papers, and a known optimum is found."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from processing_dacse import DacSeProcessor
from tests.tiny import tiny_codec, tiny_model, tiny_prompts
from tests.training.tiny_metric import load_loudness
from tests.training.tiny_tokens import Rows, tiny_arguments
from training_dacse.lm.adapters import add_adapter
from training_dacse.lm.arguments import AdapterArguments, Stage3Arguments
from training_dacse.lm.rewards.answers import answer_log_probabilities, draw_answers
from training_dacse.lm.rewards.losses import dpo_loss, grpo_loss, gspo_loss, kl_to_start
from training_dacse.lm.rewards.metrics import MetricRewards
from training_dacse.lm.rewards.reward import group_advantages
from training_dacse.lm.rewards.symptoms import symptoms
from training_dacse.lm.rewards.trainer import RewardTrainer
from training_dacse.lm.runs import last_checkpoint

FAVOURITE = 7


class CodesAsSound(DacSeProcessor):
    """Whose audio is the codes themselves, so that the best answer to a reward is known."""

    def batch_decode(self, token_ids):
        return [self.clean_codes(row)[0].flatten().float().numpy() for row in token_ids]


PROCESSOR = CodesAsSound.from_codec(tiny_codec())


def likes_one_code(waveforms, references, sampling_rate):
    """Best, at 1, if all codes are the favourite; `codes` is watched."""
    liked = np.array([np.mean(waveform == FAVOURITE) for waveform in waveforms])
    return {"liked": liked, "distinct": np.array([float(len(set(waveform))) for waveform in waveforms])}


def stage3(folder, model=None, max_steps=16, stage=None, **settings) -> RewardTrainer:
    """A run on a tiny model and the toy reward."""
    settings = {"learning_rate": 3e-3, "max_steps": max_steps, "per_device_train_batch_size": 4} | settings
    args = tiny_arguments(folder, **settings)
    stage = Stage3Arguments(**({"rewards": {"liked": 1.0}, "heard_clips": 4} | (stage or {})))
    rows = Rows(16, frames=(1, 2))
    return RewardTrainer(model or tiny_model(), args, stage, rows, rows, PROCESSOR, likes_one_code, likes_one_code)


def test_log_probabilities_are_those_of_the_grid_token_by_token():
    model = tiny_model()
    prompts = tiny_prompts([3, 1], model.config)["input_ids"]
    ids = draw_answers(model, prompts, torch.arange(6))
    assert len(ids) == 6 and len(set(map(tuple, ids.tolist()))) == 6
    own, mask = answer_log_probabilities(model, ids, ids.shape[1] - prompts.shape[1], model.config)
    assert mask.sum(1).tolist() == [9, 9, 9, 3, 3, 3] and not own[~mask].any()
    probabilities = model.token_probabilities(ids)[:, prompts.shape[1] :]
    torch.testing.assert_close(own[mask], probabilities[mask].log())
    own.sum().backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_answers_are_drawn_from_the_models_own_distribution_whatever_its_configuration_says():
    model, narrow = tiny_model(), tiny_model()
    narrow.generation_config.update(temperature=0.1, top_k=1)
    prompts, seeds = tiny_prompts([2], model.config)["input_ids"], torch.arange(8)
    assert torch.equal(draw_answers(narrow, prompts, seeds), draw_answers(model, prompts, seeds))


def test_losses_are_those_of_the_papers():
    own = torch.log(torch.tensor([[0.5, 0.25, 1.0], [0.5, 0.5, 0.5]])).requires_grad_()
    old = torch.log(torch.tensor([[0.5, 0.5, 1.0], [0.25, 0.5, 0.5]]))
    mask, advantages = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(), torch.tensor([1.0, -2.0])
    sequence = torch.tensor([0.5**0.5, 2 ** (1 / 3)])  # geometric means of the ratios
    torch.testing.assert_close(
        gspo_loss(own, old, mask, advantages, 0.1), -torch.tensor([sequence[0], -2 * sequence[1]])
    )
    token = torch.tensor([(1 + 0.5) / 2, -2 * (2 + 1 + 1) / 3])  # a bad token that came more often is not clipped
    torch.testing.assert_close(grpo_loss(own, old, mask, advantages, 0.1), -token)
    better = grpo_loss(own, old, mask, -advantages, 0.1)  # nor a good one that came less often
    torch.testing.assert_close(better, -torch.tensor([-(1 + 0.9) / 2, 2 * (1.1 + 1 + 1) / 3]))
    torch.testing.assert_close(kl_to_start(old, old, mask), torch.zeros(2))
    margin = torch.log(torch.tensor(0.5)) - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(dpo_loss(own, old, mask, 0.5)[0], -torch.nn.functional.logsigmoid(0.5 * margin))


def test_a_weight_says_how_much_a_score_counts_whatever_its_unit():
    scores = {"small": torch.tensor([[0.1, 0.2, 0.3]]), "large": torch.tensor([[300.0, 100.0, 200.0]])}
    advantages = group_advantages(scores, {"small": 1.0, "large": 1.0})
    torch.testing.assert_close(advantages, torch.tensor([[0.0, -0.6124, 0.6124]]), atol=2e-3, rtol=0)
    unknown = {"small": torch.tensor([[1.0, torch.nan, 3.0]])}
    torch.testing.assert_close(group_advantages(unknown, {"small": 2.0})[0, 1], torch.tensor(0.0))
    assert not group_advantages({"same": torch.ones(2, 4)}, {"same": 1.0}).any()
    with pytest.raises(ValueError, match="no reward is named 'larg'; there are large, small"):
        group_advantages(scores, {"larg": 1.0})


@pytest.mark.parametrize("loss", ["gspo", "grpo", "dpo"])
def test_the_known_optimum_of_a_toy_reward_is_learned(tmp_path, loss):
    stage = {"loss": loss, "kl": 0.1 if loss == "dpo" else 0.0, "clip": 0.2}
    run = stage3(tmp_path, stage=stage, max_steps=30, learning_rate=1e-2)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert logs[0]["reward/liked"] < 0.25 and logs[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert np.mean([entry["reward/liked"] for entry in logs[-6:] if "reward/liked" in entry]) > 0.8
    before, after = run.before_and_after()
    assert before["eval_reward/liked"] < 0.3 and after["eval_reward/liked"] > 0.8
    assert after["eval_reward/distinct"] < before["eval_reward/distinct"]  # what the reward did not ask for shows
    assert {"eval_level_db", "eval_silent_seconds", "eval_loss/noise"} <= after.keys()
    assert after["eval_loss"] > before["eval_loss"]


def test_the_distance_from_the_start_holds_a_model_back(tmp_path):
    free, held = (stage3(tmp_path, stage={"loss": "grpo", "kl": kl}) for kl in (0.0, 3.0))
    for run in (free, held):
        run.train()
    moved = [[entry["kl"] for entry in run.state.log_history if "kl" in entry][-1] for run in (free, held)]
    assert moved[1] < 0.3 * moved[0]


def test_a_run_that_goes_on_is_the_one_that_was_not_stopped(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    whole = stage3(tmp_path / "whole", max_steps=8, **settings)
    whole.train()
    stage3(tmp_path / "parts", max_steps=4, **settings).train()
    parts = stage3(tmp_path / "parts", max_steps=8, **settings)
    parts.train(resume_from_checkpoint=last_checkpoint(str(tmp_path / "parts")))
    for own, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert parts.stream.epochs == whole.stream.epochs == 2.0  # two batches of four at a time, half as often as steps


def test_an_adapter_is_held_to_its_base_and_the_best_one_is_kept(tmp_path):
    model = add_adapter(tiny_model(), AdapterArguments(rank=4))
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "reward/distinct", "learning_rate": 3e-2}
    stage = {"patience": 2, "loss": "grpo", "kl": 0.0}
    run = stage3(tmp_path, model, max_steps=60, stage=stage, greater_is_better=True, **settings)
    run.train()
    assert run.state.global_step < 60  # fewer kinds of codes were heard: it was stopped
    evaluated = [entry["eval_reward/distinct"] for entry in run.state.log_history if "eval_reward/distinct" in entry]
    assert run.evaluate()["eval_reward/distinct"] == max(evaluated) == evaluated[-3]
    before, after = run.before_and_after()
    assert before["eval_loss"] != after["eval_loss"]
    saved = load_file(tmp_path / f"checkpoint-{run.state.global_step - 4}" / "adapter_model.safetensors")
    assert all("lora" in name for name in saved)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"spoiled_frames": 0.5}, "spoiled_frames is 0.5, but answers are trained on: leave it out"),
        ({"weighting": "uncertainty"}, "weighting is .*uncertainty"),
        ({"max_steps": -1}, "max_steps is -1; give the number of steps"),
        ({"save_strategy": "steps", "save_steps": 3}, "save_steps is 3, in the midst of 2 updates"),
        ({"stage": {"patience": 2}}, "give load_best_model_at_end and metric_for_best_model"),
        ({"stage": {"answers": 1}}, "answers is 1; give at least 2"),
        ({"stage": {"rewards": {}}}, "rewards is empty; give the weight of a score"),
    ],
)
def test_settings_that_have_no_effect_or_do_not_go_together_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        stage3(tmp_path, **given)


def test_metrics_are_rewards_in_processes_of_their_own_and_the_lower_the_better_is_negated():
    clips = [np.full(80, value, np.float32) for value in (0.5, 0.25, 1.0)]
    references = [np.zeros(80, np.float32)] * 3
    for processes in (0, 1):
        with MetricRewards(load_loudness, ["loudness"], processes) as reward:
            assert reward(clips, references, 8000)["loud"].tolist() == [-0.5, -0.25, -1.0]


def test_a_hacked_reward_shows_in_level_and_silence():
    speech = np.sin(np.arange(8000)).astype(np.float32)
    half = np.concatenate([2 * speech[:4000], np.zeros(4000, np.float32)])
    figures = symptoms([speech, half], [speech, speech], 8000)
    assert figures["level_db"] == pytest.approx([0.0, 3.01], abs=0.01)
    assert figures["silent_seconds"] == pytest.approx([0.0, 0.5], abs=0.01)
