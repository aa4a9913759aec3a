"""Patterns: in which order the codes of a recording become one row of tokens. Pure arithmetic on indices.

In every pattern a row of `num_frames` frames has `num_frames * num_codebooks` tokens, one for each code; patterns
differ in their order alone. The flattened one is the method's (arXiv 2510.02187, section 3). The delayed one (Copet et
al., arXiv 2306.05284, section 2.2) lets codebook k lag k frames, so that the tokens of one step are of different frames
and may be predicted together. Nothing else in the project knows which codebook comes next.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FlattenedPattern:
    """Frame by frame, and in each frame codebook by codebook; every token is a step of its own.

    >>> FlattenedPattern(num_codebooks=2).codebooks(num_frames=3).tolist()
    [0, 1, 0, 1, 0, 1]

    Attributes:
        num_codebooks: Codes of a frame.
    """

    num_codebooks: int

    def codebooks(self, num_frames: int) -> torch.LongTensor:
        """The codebook of each token, `(token,)`."""
        return torch.arange(num_frames * self.num_codebooks) % self.num_codebooks

    def frames(self, num_frames: int) -> torch.LongTensor:
        """The frame of each token, `(token,)`."""
        return torch.arange(num_frames * self.num_codebooks) // self.num_codebooks

    def steps(self, num_frames: int) -> torch.LongTensor:
        """The step of each token, `(token,)`: tokens of one step do not depend on one another."""
        return torch.arange(num_frames * self.num_codebooks)

    def arrange(self, codes: torch.LongTensor) -> torch.LongTensor:
        """Lays codes `(batch, codebook, frame)` out as rows `(batch, token)`.

        >>> FlattenedPattern(2).arrange(torch.tensor([[[10, 11], [20, 21]]])).tolist()
        [[10, 20, 11, 21]]
        """
        num_frames = codes.shape[-1]
        return codes[:, self.codebooks(num_frames), self.frames(num_frames)]

    def restore(self, rows: torch.LongTensor) -> torch.LongTensor:
        """Reads codes `(batch, codebook, frame)` back from rows `(batch, token)`: the inverse of `arrange`.

        Raises:
            ValueError: If the rows are not whole frames.
        """
        num_frames, rest = divmod(rows.shape[-1], self.num_codebooks)
        if rest:
            raise ValueError(
                f"{rows.shape[-1]} tokens is not a multiple of {self.num_codebooks} codebooks: give whole frames"
            )
        codes = rows.new_empty(len(rows), self.num_codebooks, num_frames)
        codes[:, self.codebooks(num_frames), self.frames(num_frames)] = rows
        return codes


@dataclass(frozen=True)
class DelayedPattern(FlattenedPattern):
    """Codebook k of frame t stands in step t + k; a step's tokens come codebook by codebook.

    >>> pattern = DelayedPattern(num_codebooks=2)
    >>> pattern.codebooks(num_frames=3).tolist(), pattern.frames(num_frames=3).tolist()
    ([0, 0, 1, 0, 1, 1], [0, 1, 0, 2, 1, 2])
    >>> pattern.steps(num_frames=3).tolist()
    [0, 1, 1, 2, 2, 3]
    """

    def codebooks(self, num_frames: int) -> torch.LongTensor:
        return self._order(num_frames) % self.num_codebooks

    def frames(self, num_frames: int) -> torch.LongTensor:
        return self._order(num_frames) // self.num_codebooks

    def steps(self, num_frames: int) -> torch.LongTensor:
        return self.codebooks(num_frames) + self.frames(num_frames)

    def _order(self, num_frames: int) -> torch.LongTensor:
        """Places in the flattened row, by step and in a step by codebook."""
        flattened = torch.arange(num_frames * self.num_codebooks)
        codebooks, frames = flattened % self.num_codebooks, flattened // self.num_codebooks
        return ((frames + codebooks) * self.num_codebooks + codebooks).argsort()


PATTERNS = {"flattened": FlattenedPattern, "delayed": DelayedPattern}
