"""The width of the terminal that tests are started from, or that a worker of xdist is told, is none of theirs."""

import pytest


@pytest.fixture(autouse=True)
def _no_width_from_outside(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
