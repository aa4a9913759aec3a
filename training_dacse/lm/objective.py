"""What is minimised: next-token cross-entropy on what follows `start_clean`. Knows ids, no audio."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import cached_file

from ..tokens.collate import IGNORED

PRIOR_FILE = "log_prior.safetensors"  # beside the weights of a model that was trained with a logit adjustment
PRIOR_CLIPS = 4096  # at most, from all over the training clips, from which it is told how common codes are
FORWARDED = ("attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass
class TokenLosses:
    """The tokens of a batch that are trained on.

    Attributes:
        loss: cross-entropy of each, (token,).
        task: number of its task, (token,).
        target: its id, (token,).
        likeliest: the id that the model would give, (token,).
    """

    loss: Tensor
    task: Tensor
    target: Tensor
    likeliest: Tensor


class Objective:
    """Cross-entropy of the clean tokens; only their positions go through the output layer.

    Args:
        layout: the model's configuration, which names the token layout.
        log_prior: is added to the logits in the loss, (id,): the logarithm of how common a code is, times a strength
            (logit adjustment, Menon et al., arXiv 2007.07314). The model's own logits then say how far the recording
            speaks for a code, and greedy decoding does not fall back on the commonest codes, those of silence.
        spoiled_frames: of a clip's clean frames, the most that noisy ones take the place of while it is trained on.
    """

    def __init__(self, layout: PretrainedConfig, log_prior: Tensor | None = None, spoiled_frames: float = 0.0):
        self.layout, self.log_prior, self.spoiled_frames = layout, log_prior, spoiled_frames

    def check(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        """Raises ValueError if it does not work for a model, told by a batch of held-out clips."""

    @property
    def trained_share(self) -> float:
        """Of all labels of a batch, how many are trained on, on average."""
        return 1 - self.spoiled_frames / 2

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> TokenLosses:
        """The losses of a batch of `TokenCollator` or `PackingCollator`."""
        if model.training and self.spoiled_frames:
            batch = batch | spoil_frames(batch["input_ids"], batch["labels"], self.layout, self.spoiled_frames)
        logits, target, task = self.predict(model, batch)
        scores = logits.float() if self.log_prior is None else logits.float() + self.log_prior.to(logits.device)
        loss = nn.functional.cross_entropy(
            scores.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
        )
        kept, likeliest = target != IGNORED, logits.detach().argmax(-1)
        return TokenLosses(loss[kept.flatten()], task[kept], target[kept], likeliest[kept])

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (..., id), labels (...) and task (...) of the tokens that may be trained on."""
        labels, task = batch["labels"], batch["task"]
        if "example" in batch:  # packed
            kept = batch["logits_to_keep"]
            target, task = labels[:, kept + 1], task[batch["example"][:, kept + 1]]
        else:
            first = int((labels != IGNORED).any(0).float().argmax())
            kept, target = labels.shape[1] - first + 1, labels[:, first:]
            task = task[:, None].expand_as(target)
        forwarded = {name: batch[name] for name in FORWARDED if name in batch}
        logits = model(input_ids=batch["input_ids"], logits_to_keep=kept, use_cache=False, **forwarded).logits
        return logits[:, : target.shape[1]], target, task


def spoil_frames(ids: Tensor, labels: Tensor, layout: PretrainedConfig, most: float) -> dict[str, Tensor]:
    """Puts noisy frames in the place of some clean ones, a share of each row's that is drawn from 0 to `most`.

    Args:
        ids: batch of `TokenCollator`, padded on the right (row, token).
        labels: its labels (row, token).
        layout: of the ids.
        most: of a row's frames, 0 to 1.

    Returns:
        `input_ids`, and `labels` that leave out what was replaced: both (row, token).
    """
    codes = (labels != IGNORED).sum(1, keepdim=True) - 1  # of the clean half; the last label is [eos]
    token = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    place = token - codes - 2
    drawn = torch.rand(ids.shape, device=ids.device) < most * torch.rand(len(ids), 1, device=ids.device)
    frame = layout.make_pattern().frames(int(codes.max()) // layout.num_codebooks).to(ids.device)
    spoiled = drawn.gather(1, frame[place.clamp(0, len(frame) - 1)]) & (place >= 0) & (place < codes)
    noisy = ids.gather(1, (token - codes - 1).clamp(min=0))
    return {"input_ids": torch.where(spoiled, noisy, ids), "labels": labels.masked_fill(spoiled, IGNORED)}


def log_prior(rows: Iterable[dict], layout: PretrainedConfig) -> Tensor:
    """How common each clean code is among those of its codebook, as logarithms (id,); 0 for special ids.

    Args:
        rows: clips with `clean` codes (codebook, frame).
        layout: of the ids.
    """
    counts = torch.ones(layout.num_codebooks, layout.codebook_size)  # so that none is impossible
    for row in rows:
        clean = torch.as_tensor(row["clean"])[: layout.num_codebooks]
        counts.scatter_add_(1, clean, torch.ones_like(clean, dtype=counts.dtype))
    prior = torch.zeros(layout.vocab_size)
    prior[layout.first_code_id :] = (counts / counts.sum(1, keepdim=True)).log().flatten()
    return prior


def prior_of_rows(rows, layout: PretrainedConfig, strength: float) -> Tensor | None:
    """The logit adjustment of training clips, (id,); None at strength 0."""
    if not strength:
        return None
    every = math.ceil(len(rows) / PRIOR_CLIPS)
    return strength * log_prior((rows[number] for number in range(0, len(rows), every)), layout)


def prior_of_model(path: str | Path) -> Tensor | None:
    """The logit adjustment that a model was trained with, (id,), if it was trained with one."""
    found = cached_file(path, PRIOR_FILE, _raise_exceptions_for_missing_entries=False)
    return load_file(found)["log_prior"] if found else None


def save_prior(prior: Tensor, folder: str | Path) -> None:
    """Leaves a logit adjustment beside the weights that were trained with it."""
    save_file({"log_prior": prior.cpu().contiguous()}, Path(folder) / PRIOR_FILE)
