"""A model that takes one step a frame, to be compared with the method's one step a code. Knows codes; no recording.

A frame's code vectors are summed into one vector, so a sequence has as many steps as frames. Two ways to predict the
codes of a frame: with codebook k delayed by k frames, all of a step at once (Copet et al. 2023, arXiv 2306.05284), or
one after the other in a small model of its own (Lee et al. 2022, arXiv 2203.01941, the "depth transformer").
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel, PreTrainedModel

from modeling_dacse import DacSeConfig
from modeling_dacse.pattern_dacse import DelayedPattern

from ..lm.objective import Objective, TokenLosses

NOTHING = -1  # in the place of a code that a step does not have


class FrameModel(PreTrainedModel):
    """A Llama over frames: `[bos] noisy frames [start_clean] clean frames`.

    Args:
        config: of the language model that it is compared with.
        depth_layers: of the model that predicts the codes of a frame one after the other; 0 for delayed codebooks.
    """

    config_class = DacSeConfig
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: DacSeConfig, depth_layers: int = 0):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model = LlamaModel(config)
        self.heads = nn.Linear(config.hidden_size, config.num_codebooks * config.codebook_size, bias=False)
        self.depth = None
        if depth_layers:
            shape = config.to_dict() | {"num_hidden_layers": depth_layers}
            self.depth = LlamaModel(DacSeConfig(**shape))
        del self.model.embed_tokens  # frames are embedded here
        for weight in (self.embed_tokens.weight, self.heads.weight):
            nn.init.normal_(weight, std=config.initializer_range)

    def embed(self, codes: Tensor) -> Tensor:
        """Steps (batch, codebook, step) as vectors (batch, step, width): the sum over the codes that are there."""
        ids = codes + self.first_ids(codes.device)[:, None]
        vectors = self.embed_tokens(ids.clamp(min=0)) * (codes != NOTHING)[..., None]
        return vectors.sum(1)

    def first_ids(self, device: torch.device) -> Tensor:
        """Id of code 0 of each codebook, (codebook,)."""
        layout = self.config
        return layout.first_code_id + layout.codebook_size * torch.arange(layout.num_codebooks, device=device)

    def special(self, token: int, batch: int) -> Tensor:
        """One special id as a step, (batch, 1, width)."""
        return self.embed_tokens.weight[token].expand(batch, 1, -1)

    def prompt(self, noisy: Tensor) -> Tensor:
        """`[bos] noisy [start_clean]` as vectors (batch, step, width)."""
        layout, batch = self.config, len(noisy)
        start = self.special(layout.start_clean_token_id, batch)
        return torch.cat([self.special(layout.bos_token_id, batch), self.embed(noisy), start], 1)

    def clean_steps(self, clean: Tensor) -> Tensor:
        """Clean codes (batch, codebook, frame) by steps (batch, codebook, step), delayed or not."""
        if self.depth is not None:
            return clean
        frames = clean.shape[-1]
        pattern = DelayedPattern(self.config.num_codebooks)
        books, steps = pattern.codebooks(frames), pattern.steps(frames)
        delayed = clean.new_full((*clean.shape[:2], int(steps.max()) + 1), NOTHING)
        delayed[:, books, steps] = clean[:, books, pattern.frames(frames)]
        return delayed

    def frames_of(self, steps: Tensor, frames: int) -> Tensor:
        """The inverse of `clean_steps`."""
        if self.depth is not None:
            return steps
        pattern = DelayedPattern(self.config.num_codebooks)
        clean = steps.new_empty(*steps.shape[:2], frames)
        books = pattern.codebooks(frames)
        clean[:, books, pattern.frames(frames)] = steps[:, books, pattern.steps(frames)]
        return clean

    def forward(self, noisy: Tensor, clean: Tensor, **kwargs) -> Tensor:
        """Logits (batch, codebook, step, code) of the clean steps."""
        steps = self.clean_steps(clean)
        inputs = torch.cat([self.prompt(noisy), self.embed(steps[..., :-1])], 1)
        hidden = self.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, noisy.shape[-1] + 1 :]
        if self.depth is None:
            return self.heads(hidden).unflatten(-1, (self.config.num_codebooks, -1)).transpose(1, 2)
        before = self.embed_tokens(steps + self.first_ids(steps.device)[:, None]).transpose(1, 2)[:, :, :-1]
        rows = torch.cat([hidden[:, :, None], before], 2).flatten(0, 1)  # (batch * step, codebook, width)
        answer = self.depth(inputs_embeds=rows, use_cache=False).last_hidden_state
        return self.per_codebook(answer).unflatten(0, hidden.shape[:2]).transpose(1, 2)

    def per_codebook(self, hidden: Tensor) -> Tensor:
        """Logits (row, codebook, code) of vectors (row, codebook, width), each by its own codebook's head."""
        heads = self.heads.weight.unflatten(0, (self.config.num_codebooks, -1))[: hidden.shape[1]]
        return torch.einsum("rkw,kcw->rkc", hidden, heads)

    @torch.no_grad()
    def generate_codes(self, noisy: Tensor) -> Tensor:
        """Greedy clean codes (batch, codebook, frame) of noisy ones."""
        self.eval()
        frames, books = noisy.shape[-1], self.config.num_codebooks
        last = frames if self.depth is not None else frames + books - 1
        cache, inputs, steps = DynamicCache(), self.prompt(noisy), []
        for step in range(last):
            hidden = self.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            codes = self.codes_of_step(hidden)
            if self.depth is None:  # codebook k has codes from step k on, and for as many steps as there are frames
                lag = step - torch.arange(books, device=codes.device)
                codes = torch.where((lag >= 0) & (lag < frames), codes, NOTHING)
            steps.append(codes)
            inputs = self.embed(codes[..., None])
        return self.frames_of(torch.stack(steps, -1), frames)

    def codes_of_step(self, hidden: Tensor) -> Tensor:
        """The likeliest codes (batch, codebook) of a step (batch, width)."""
        if self.depth is None:
            return self.heads(hidden).unflatten(-1, (self.config.num_codebooks, -1)).argmax(-1)
        cache, inputs, codes = DynamicCache(), hidden[:, None], []
        heads = self.heads.weight.unflatten(0, (self.config.num_codebooks, -1))
        for book, first in enumerate(self.first_ids(hidden.device)):
            answer = self.depth(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            codes.append((answer @ heads[book].T).argmax(-1))
            inputs = self.embed_tokens(codes[-1] + first)[:, None]
        return torch.stack(codes, -1)


class FrameObjective(Objective):
    """Cross-entropy of a `FrameModel`'s codes, among those of their codebook, from batches of clips of one length."""

    def __call__(self, model: FrameModel, batch: dict[str, Tensor]) -> TokenLosses:
        layout = self.layout
        half = (batch["input_ids"].shape[1] - 3) // 2
        sides = batch["input_ids"][:, 1 : 1 + half], batch["input_ids"][:, 2 + half : -1]
        pattern = layout.make_pattern()
        first = model_of(model).first_ids(batch["input_ids"].device)[:, None]
        noisy, clean = (pattern.restore(ids) - first for ids in sides)
        logits = model(noisy=noisy, clean=clean).float()
        target = model_of(model).clean_steps(clean)
        there = target != NOTHING
        loss = nn.functional.cross_entropy(logits[there], target[there], reduction="none")
        ids = target + first
        task = batch["task"][:, None, None].expand_as(target)
        return TokenLosses(loss, task[there], ids[there], (logits.argmax(-1) + first)[there])


def model_of(model: nn.Module) -> FrameModel:
    """The model itself, of one that may be wrapped for several processes."""
    return getattr(model, "module", model)
