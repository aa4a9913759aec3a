"""Keeps what another engine generates on the grid of codebooks. Needs torch, and vLLM where vLLM is to use it.

It lies beside the weights of a plain Llama that `dacse convert --plain-llama` writes. A prompt is
`[bos] noisy [start_clean]`, its answer as many clean tokens and `[eos]`, frame by frame and codebook by codebook:
which ids may come next depends on how far an answer has come, on nothing that was generated.

    PYTHONPATH=DIR vllm serve DIR --logits-processors codebook_grid:GridLogitsProcessor
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

try:
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessor
except ImportError:  # another engine: `RequestGrid` is for all
    AdapterLogitsProcessor = LogitsProcessor = object


@dataclass(frozen=True)
class Grid:
    """The token layout: `token_id = first_code_id + codebook * codebook_size + code`. The defaults are DAC-SE1's."""

    num_codebooks: int = 9
    codebook_size: int = 1024
    first_code_id: int = 5
    eos_token_id: int = 2
    start_clean_token_id: int = 3

    @classmethod
    def of_config(cls, config: Any) -> "Grid":
        """The layout that the `config.json` of a model states.

        Raises:
            ValueError: If the vocabulary is of another size than its layout.
        """
        names = ("num_codebooks", "codebook_size", "first_code_id")
        grid = cls(**{name: getattr(config, name) for name in names if hasattr(config, name)})
        size = grid.first_code_id + grid.num_codebooks * grid.codebook_size
        if config.vocab_size != size:
            raise ValueError(
                f"the model has {config.vocab_size} ids, but {grid.num_codebooks} codebooks of {grid.codebook_size} "
                f"codes after {grid.first_code_id} special ids make {size}: its config.json must state num_codebooks, "
                "codebook_size and first_code_id"
            )
        return grid

    def missing(self, prompt_ids: Sequence[int]) -> tuple[int, int]:
        """How many noisy tokens a prompt has, and how many clean ones it has begun with; (0, 0) if it is none.

        >>> Grid().missing([0, 5, 1029, 3, 6]), Grid().missing([0, 5])
        ((2, 1), (0, 0))
        """
        prompt_ids = list(prompt_ids)
        if self.start_clean_token_id not in prompt_ids:
            return 0, 0
        start = prompt_ids.index(self.start_clean_token_id)
        return sum(i >= self.first_code_id for i in prompt_ids[:start]), len(prompt_ids) - start - 1

    def legal_ids(self, noisy: int, clean: int) -> tuple[int, int]:
        """The lowest id that may come after so many clean tokens of an answer, and the first one above the legal ones.

        >>> grid = Grid(num_codebooks=2, codebook_size=10)
        >>> [grid.legal_ids(noisy=4, clean=clean) for clean in range(5)]
        [(5, 15), (15, 25), (5, 15), (15, 25), (2, 3)]
        """
        if clean >= noisy:
            return self.eos_token_id, self.eos_token_id + 1
        lowest = self.first_code_id + clean % self.num_codebooks * self.codebook_size
        return lowest, lowest + self.codebook_size


class RequestGrid:
    """The grid for one request: vLLM's interface of a function for each, which other engines share.

    >>> grid = RequestGrid(Grid(num_codebooks=2, codebook_size=1))
    >>> grid([0, 5, 6, 3], [5], torch.zeros(7)).tolist()
    [-inf, -inf, -inf, -inf, -inf, -inf, 0.0]
    """

    def __init__(self, grid: Grid):
        self.grid = grid

    def __call__(
        self, prompt_ids: Sequence[int], output_ids: Sequence[int], logits: torch.FloatTensor
    ) -> torch.FloatTensor:
        """The logits (id,) of the next token, with -inf off the grid."""
        noisy, begun = self.grid.missing(prompt_ids)
        lowest, stop = self.grid.legal_ids(noisy, begun + len(output_ids))
        kept = torch.full_like(logits, -torch.inf)
        kept[lowest:stop] = logits[lowest:stop]
        return kept


class RequestGridLogitsProcessor(AdapterLogitsProcessor):
    """`RequestGrid` for all requests of a vLLM server, one after the other."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        super().__init__(vllm_config, device, is_pin_memory)
        self.grid = Grid.of_config(vllm_config.model_config.hf_config)

    def is_argmax_invariant(self) -> bool:
        """Whether greedy decoding may leave it out: it may not."""
        return False

    def new_req_logits_processor(self, params: Any) -> RequestGrid:
        """The function of a new request."""
        return RequestGrid(self.grid)


class GridLogitsProcessor(LogitsProcessor):
    """The grid for a whole batch of vLLM's at once.

    Args:
        vllm_config: Of the server; its model's configuration states the layout.
        device: Where the logits are.
        is_pin_memory: Part of the interface.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.grid, self.device = Grid.of_config(vllm_config.model_config.hf_config), device
        self.ids = torch.arange(vllm_config.model_config.hf_config.vocab_size, device=device)
        self.rows: dict[int, tuple[int, int, list[int]]] = {}  # noisy tokens, clean ones begun, the growing answer

    def is_argmax_invariant(self) -> bool:
        """Whether greedy decoding may leave it out: it may not."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows which request is in which row: some leave, some come, some change places, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, _, prompt_ids, output_ids in batch_update.added:
            self.rows[index] = (*self.grid.missing(prompt_ids or []), output_ids)
        for source, target, direction in batch_update.moved:
            here, there = self.rows.pop(source, None), self.rows.pop(target, None)
            if here is not None:
                self.rows[target] = here
            if there is not None and direction.name == "SWAP":
                self.rows[source] = there

    def apply(self, logits: torch.FloatTensor) -> torch.FloatTensor:
        """The logits (row, id), with -inf off the grid."""
        legal = [(0, logits.shape[1])] * len(logits)
        for index, (noisy, begun, output_ids) in self.rows.items():
            legal[index] = self.grid.legal_ids(noisy, begun + len(output_ids))
        lowest, stop = torch.tensor(legal, device=self.device).T[..., None]
        return logits.masked_fill_((self.ids < lowest) | (self.ids >= stop), -torch.inf)
