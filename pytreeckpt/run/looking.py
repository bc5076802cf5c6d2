"""What a manager sees of its folder: what its writer knows, while it writes there, else what is in the folder now."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from pytreeckpt.run.choosing import Choice
from pytreeckpt.run.finding import settled
from pytreeckpt.run.history_file import readable_history
from pytreeckpt.run.listing import Listing, with_logs
from pytreeckpt.run.reading import look, with_present
from pytreeckpt.run.turns import Turns
from pytreeckpt.run.writing import Writing
from pytreeckpt.steps.history import History, with_metrics
from pytreeckpt.storage import Storage


class View:
    """It takes no lock, writes nothing, and waits for nobody. What is wrong without harm it tells by warnings, once."""

    def __init__(self, storage: Storage, root: str, how: Writing, turns: Turns) -> None:
        self._storage = storage
        self._root = root
        self._how = how
        self._turns = turns
        self._found: History | None = None
        self._told: set[str] = set()

    def choice(self) -> Choice:
        """The steps that are there, with what was logged of them."""
        writer = self._turns.writer
        if writer is None:
            history, listing = self.fresh()
        else:
            history, listing = writer.history, settled(writer.look)
        # Whoever finds no step, or an older one, should know that there was more.
        self.tell(f"a step is damaged, and not counted: {problem}" for problem in listing.damaged.values())
        listing = with_logs(listing, self._turns.logs.now())
        return Choice(self._root, listing, history.pins, self._how.metric, self._how.mode)

    def known(self) -> History:
        """What is known of all steps, with what was logged."""
        writer = self._turns.writer
        # A save that was interrupted, or may not be durable, has not come to tell of its step.
        history = self.fresh()[0] if writer is None else with_present(writer.history, settled(writer.look))
        return with_metrics(history, self._turns.logs.now(), self._how.now())

    def remembered(self) -> History:
        """The history, as it was when it was first asked for until something is written; without what was logged."""
        writer = self._turns.writer
        if writer is not None:
            return writer.history
        if self._found is None:
            self._found = self.fresh()[0]
        return self._found

    def fresh(self) -> tuple[History, Listing]:
        """The history and the steps as they are in the folder."""
        history, problem = readable_history(self._storage, self._root)
        if problem is not None:
            self.tell([problem])
        listing, known = look(self._storage, self._root, history)
        return known, listing

    def tell(self, notes: Iterable[str]) -> None:
        """Warn of each, once."""
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                warnings.warn(note, stacklevel=4)

    def tell_notes(self) -> None:
        """Warn of what the writer has noted."""
        writer = self._turns.writer
        if writer is not None:
            self.tell(writer.take_notes())
