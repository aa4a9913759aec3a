"""How one run serves several tasks: in which order their clips come, how their losses weigh, what holds it back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..tokens.stream import Order, shuffled
from .anchors import Anchor
from .kinds import make_kind
from .sampling import SAMPLINGS
from .weighting import WEIGHTINGS, Weighting


@dataclass
class Strategy:
    """What a trainer asks instead of switches.

    Attributes:
        weighting: of the tasks' losses.
        order: of the clips of an epoch.
        anchor: pulls towards the weights a run began with, if there is one.
    """

    weighting: Weighting
    order: Order = field(default=shuffled)
    anchor: Anchor | None = None

    @classmethod
    def from_settings(
        cls, tasks: Sequence[str], sampling: dict, weighting: dict, anchor: Anchor | None = None
    ) -> "Strategy":
        """The strategy that a run's settings describe.

        Raises:
            ValueError: a setting that does not fit the tasks.
        """
        return cls(make_kind(weighting, WEIGHTINGS, tasks), make_kind(sampling, SAMPLINGS), anchor)

    def refuse_shards(self, how: str) -> None:
        """Raises ValueError where it needs weights that no process has whole; `how` says why none has."""
        if self.anchor is not None:
            raise ValueError(f"an anchor needs whole weights in float32; {how} keeps them in shards: use DDP")
        if self.weighting.needs_whole_layers:
            raise ValueError(f"gradnorm needs whole layers; {how} keeps them in shards: use uncertainty, dwa or DDP")
