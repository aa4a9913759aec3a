"""What is minimised: which tokens, how common codes are discounted, and what a model keeps to."""

import pytest
import torch

from tests.tiny import tiny_config, tiny_model
from tests.training.tiny_tokens import Rows, tiny_trainer
from training_dacse.lm.arguments import DacSeTrainingArguments
from training_dacse.lm.objective import Objective, log_prior, prior_of_model, prior_of_rows, spoil_frames
from training_dacse.lm.runs import make_objective
from training_dacse.tokens.collate import IGNORED, TokenCollator


def test_spoiled_frames_are_whole_noisy_ones_and_not_trained_on():
    config, generator = tiny_model().config, torch.Generator().manual_seed(1)
    frames, examples = (4, 7, 5), []
    for count in frames:
        noisy, clean = torch.randint(16, (2, 3, count), generator=generator)
        examples.append({"noisy": noisy, "clean": clean, "task": 0})
    batch = TokenCollator(config)(examples)
    torch.manual_seed(0)
    ids, labels = spoil_frames(batch["input_ids"], batch["labels"], config, most=1.0).values()
    spoiled = labels != batch["labels"]
    assert (labels[spoiled] == IGNORED).all() and torch.equal(labels[~spoiled], batch["labels"][~spoiled])
    assert torch.equal(ids[~spoiled], batch["input_ids"][~spoiled])
    for row, count in enumerate(frames):
        noisy, clean = slice(1, 1 + 3 * count), slice(2 + 3 * count, 2 + 6 * count)
        of_frames = spoiled[row, clean].view(count, 3)
        assert of_frames.any(1).equal(of_frames.all(1)) and 0 < of_frames.sum() == spoiled[row].sum()
        assert torch.equal(ids[row, clean][of_frames.flatten()], ids[row, noisy][of_frames.flatten()])


def test_frames_are_spoiled_in_training_alone(tmp_path):
    model, rows = tiny_model(attention_dropout=0.0), Rows(200)
    runs = [tiny_trainer(tmp_path, rows, model, spoiled_frames=share, seed=1) for share in (0.0, 1.0)]
    assert runs[0].evaluate()["eval_loss"] == runs[1].evaluate()["eval_loss"]
    batch = TokenCollator(model.config)([rows[index] for index in range(len(rows))])
    labels = (batch["labels"] != IGNORED).sum()
    model.train()
    plain, spoiled = (run.compute_loss(model, dict(batch), num_items_in_batch=labels).item() for run in runs)
    assert spoiled != plain
    assert spoiled == pytest.approx(plain, rel=0.15)  # a mean of what is left, up to the labels of [eos]


def test_common_codes_are_discounted_by_their_logarithms(tmp_path):
    config, rows = tiny_config(), Rows(50)
    prior = log_prior((rows[number] for number in range(50)), config)
    counts = torch.stack([rows[number]["clean"] for number in range(50)], 1).flatten(1)  # (codebook, code)
    for book, code in ((0, 3), (2, 15)):
        share = ((counts[book] == code).sum() + 1) / (counts.shape[1] + 16)
        assert prior[5 + 16 * book + code].item() == pytest.approx(share.log().item(), rel=1e-5)
    assert (prior[:5] == 0).all() and prior_of_rows(rows, config, 0.0) is None
    model = tiny_model(attention_dropout=0.0)
    batch = TokenCollator(config)([rows[0]])
    plain, adjusted = (Objective(config, given)(model, batch) for given in (None, 2 * prior))
    logits = model(batch["input_ids"]).logits[0, 13:-1] + 2 * prior
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 14:], reduction="none")
    torch.testing.assert_close(adjusted.loss, expected)
    assert torch.equal(plain.likeliest, adjusted.likeliest)  # the model's own


def test_a_model_keeps_to_the_adjustment_it_was_trained_with(tmp_path):
    """An adapter of it would else spend itself on learning how common codes are."""

    def objective_of(strength, path):
        args = DacSeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, logit_adjustment=strength)
        return make_objective(args, config, rows, path)

    config, rows = tiny_config(), Rows(8)
    first = objective_of(0.5, "tiny")
    run = tiny_trainer(tmp_path, rows, objective=first)
    run.save_model(str(tmp_path / "model"))
    assert torch.equal(prior_of_model(tmp_path / "model"), first.log_prior)
    kept = objective_of(None, str(tmp_path / "model")).log_prior
    assert torch.equal(kept, first.log_prior)
    assert objective_of(0.0, str(tmp_path / "model")).log_prior is None
    assert objective_of(None, "tiny").log_prior is None
    run.save_model(str(tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    rows = None  # of a window of shards, the first ones are gone when a run goes on
    assert torch.equal(objective_of(0.5, "tiny").log_prior, first.log_prior)
