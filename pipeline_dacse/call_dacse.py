"""One call to the engine: recordings being read, windows that wait for a batch, answers on their way out.

Whoever iterates over a recording has the call read on and answer a batch, until that recording's next window is done.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .options_dacse import EnhanceOptions
from .recording_dacse import EnhancedWindow, Piece, Recording, Window

if TYPE_CHECKING:
    from .engine_dacse import Enhancer


class EnhancedRecording:
    """One recording of a call: iterate over it for its pieces, once.

    Attributes:
        audio: What was given.
        index: Its place, in the call unless the call says otherwise.
        recording: What is known of it, or None if it cannot be opened; iterating then raises why.
    """

    def __init__(self, call: "Call", audio: Any, index: int):
        self.audio, self.index, self.recording = audio, index, None
        self._call, self._rows = call, deque()
        self._error: Exception | None = None
        self._is_read = self._is_closed = False

    def __iter__(self) -> Iterator[Piece]:
        try:
            rows = self._answered()
            first = next(rows, None)  # raises what is wrong before anything is rendered
            if first is not None:
                yield from self.recording.render(itertools.chain([first], rows))
        finally:
            self.close()

    def read(self, enhancer: "Enhancer", options: EnhanceOptions) -> Iterator[Window | None]:
        """Yields None once it is open or cannot be, then its windows as long as somebody wants them.

        Whatever its source raises becomes its own error.
        """
        try:
            self.recording = Recording(enhancer.processor, self.audio, options, enhancer.model.config.max_frames)
        except Exception as error:
            self._error = error
        yield None
        try:
            for window in self.recording.windows() if self._error is None else ():
                yield window
                if self._is_closed:
                    break
        except Exception as error:
            self._error = error
        self._is_read = True

    def wants(self) -> bool:
        """Whether answers still have a use."""
        return self._error is None and not self._is_closed

    def add(self, row: EnhancedWindow) -> None:
        """Takes an answered window, in order."""
        self._rows.append(row)

    def fail(self, error: Exception) -> None:
        """Ends it with an error, after what has been answered."""
        self._error = error

    def close(self) -> None:
        """Says that no more pieces are wanted."""
        self._is_closed = True
        self._rows.clear()

    def _answered(self) -> Iterator[EnhancedWindow]:
        while True:
            while self._rows:
                yield self._rows.popleft()
            if self._error is not None:
                raise self._error
            if self._call.holds_windows_of(self):
                self._call.run_batch()
            elif self._is_read:
                return
            else:
                self._call.read_on()


class Call:
    """The state of one call: recordings being read, windows that wait for a batch."""

    def __init__(
        self,
        enhancer: "Enhancer",
        recordings: Iterable[Any],
        options: EnhanceOptions,
        arguments: dict[str, Any],
        places: Iterable[int] | None,
    ):
        self.enhancer, self.options, self.arguments = enhancer, options, arguments
        self.batch_size = 1 if options.is_assisted else options.batch_size or enhancer.default_windows(options)
        self.seed = np.random.SeedSequence().entropy if options.seed is None else options.seed % 2**64
        self.windows = self._read(recordings, itertools.count() if places is None else places)
        self.waiting: deque[tuple[EnhancedRecording, Window]] = deque()
        self.opened: deque[EnhancedRecording] = deque()  # and not handed out yet

    def run(self) -> Iterator[EnhancedRecording]:
        while self.opened or self.read_on():
            if self.opened:
                recording = self.opened.popleft()
                yield recording
                recording.close()

    def run_batch(self) -> None:
        """Has a full batch answered, or what is left of the recordings."""
        while len(self.waiting) < self.batch_size and self.read_on():
            pass
        batch = [self.waiting.popleft() for _ in range(min(self.batch_size, len(self.waiting)))]
        batch = [(recording, window) for recording, window in batch if recording.wants()]
        seeds = [self._seeds(recording, window) for recording, window in batch] if self.options.draws else None
        try:
            rows = self.enhancer.answer([window for _, window in batch], seeds, self.options, self.arguments)
        except Exception as error:  # of this batch: each of its recordings raises it, the others go on
            for recording, _ in batch:
                recording.fail(error)
            return
        for (recording, window), row in zip(batch, rows, strict=True):
            recording.add(row)
            if self.options.progress is not None:
                self.options.progress(window.span.last, recording.recording.expect_frames())

    def holds_windows_of(self, recording: EnhancedRecording) -> bool:
        """Whether windows of it wait for their batch."""
        return any(owner is recording for owner, _ in self.waiting)

    def read_on(self) -> bool:
        """Opens a recording, cuts a window of it or ends it; False if there is nothing left."""
        found = next(self.windows, None)
        if found is not None and found[1] is not None:
            self.waiting.append(found)
        return found is not None

    def _read(
        self, recordings: Iterable[Any], places: Iterable[int]
    ) -> Iterator[tuple[EnhancedRecording, Window | None]]:
        for audio, index in zip(recordings, places, strict=False):
            recording = EnhancedRecording(self, audio, index)
            windows = recording.read(self.enhancer, self.options)
            next(windows)
            self.opened.append(recording)
            yield recording, None
            for window in windows:
                yield recording, window
            yield recording, None

    def _seeds(self, recording: EnhancedRecording, window: Window) -> list[int]:
        """Of the random streams of a window's candidates, as signed numbers of 64 bits; the first needs no others."""
        place = (self.seed, recording.index, window.channel, window.index)
        places = [place, *((*place, candidate) for candidate in range(1, self.options.candidates))]
        states = (np.random.SeedSequence(entropy=place).generate_state(1, np.uint64) for place in places)
        return [int(state[0].astype(np.int64)) for state in states]
