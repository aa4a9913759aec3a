"""Answers drawn to noisy prompts, and how likely a model finds them under the grid. Knows ids: no waveform."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig

from ...tokens.collate import IGNORED, training_sequence

# The model's own distribution, whatever its generation configuration says: of this one are the log-probabilities.
UNCHANGED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclass
class PromptCollator:
    """Makes prompts of examples: `input_ids` (prompt, token), left-padded, and `whole`, each with its clean half.

    Args:
        config: names the token layout.
    """

    config: PretrainedConfig

    def __call__(self, examples: list[dict]) -> dict[str, Tensor | list[Tensor]]:
        rows = [training_sequence(example, self.config) for example in examples]
        prompts = [ids[labels == IGNORED] for ids, labels in rows]
        pad = self.config.pad_token_id
        return {"input_ids": pad_sequence(prompts, True, pad, "left"), "whole": [ids for ids, _ in rows]}


class RepeatedAnswers:
    """Batches of answers: those drawn for one step of the optimizer are trained on for some more.

    Args:
        prompts: batches, read as answers are wanted.
        draw: answers to a batch of prompts, by the model as it then is.
        batches: of a step.
        updates: steps on the same answers.
    """

    def __init__(self, prompts: Iterable[dict], draw: Callable[[dict], dict], batches: int, updates: int):
        self.prompts, self.draw, self.batches, self.updates = prompts, draw, batches, updates

    def __iter__(self) -> Iterator[dict]:
        prompts = iter(self.prompts)
        while drawn := [self.draw(batch) for batch in itertools.islice(prompts, self.batches)]:
            for _ in range(self.updates):
                yield from drawn


def generate_answers(model: nn.Module, prompts: Tensor, **settings) -> Tensor:
    """What a `DacSeForEnhancement` answers: `prompt, clean ids, eos, pad ...`, (row, token).

    Args:
        model: for inference.
        prompts: (prompt, token), left-padded.
        settings: of `generate`.
    """
    mask = (prompts != model.config.pad_token_id).long()
    ids = model.generate(prompts, attention_mask=mask, custom_generate=model.fast_decoder, **settings)
    return ids.clone()  # what is made for inference cannot be trained on


def draw_answers(model: nn.Module, prompts: Tensor, seeds: Tensor) -> Tensor:
    """Answers as likely as the model finds them, those to one prompt after one another, (row, token).

    Args:
        model: for inference.
        prompts: (prompt, token), left-padded.
        seeds: of each answer, (row,).
    """
    each = len(seeds) // len(prompts)
    return generate_answers(model, prompts, do_sample=True, num_return_sequences=each, row_seeds=seeds, **UNCHANGED)


def answer_log_probabilities(
    model: nn.Module, ids: Tensor, num_tokens: int, layout: PretrainedConfig
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the codes of answers, among the codes of each one's codebook: all that the grid allows.

    Args:
        model: any causal language model.
        ids: of `draw_answers`, (row, token).
        num_tokens: at the end of a row that are the answer.
        layout: of the ids.

    Returns:
        (row, answer token): log-probabilities, 0 where there is no code; and bool, where there is one.
    """
    is_real = (ids != layout.pad_token_id).cumsum(-1).clamp(max=1)  # padding on the right changes nothing
    positions = (is_real.cumsum(-1) - 1).clamp(min=0)
    outputs = model(
        input_ids=ids, attention_mask=is_real, position_ids=positions, logits_to_keep=num_tokens + 1, use_cache=False
    )
    code = ids[:, -num_tokens:] - layout.first_code_id
    is_code = code >= 0
    code = code.clamp(min=0)
    books = outputs.logits[:, :-1, layout.first_code_id :].unflatten(-1, (-1, layout.codebook_size))
    book = code.div(layout.codebook_size, rounding_mode="floor")[..., None, None]
    scores = books.take_along_dim(book, dim=2)[:, :, 0].float()
    chosen = scores.log_softmax(-1).gather(-1, code.remainder(layout.codebook_size)[..., None])[..., 0]
    return chosen.masked_fill(~is_code, 0.0), is_code
