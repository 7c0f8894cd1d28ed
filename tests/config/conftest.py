"""What one test took from the environment is not masked in another's messages."""

import pytest

from espnet3_lite.config import environment


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch):
    monkeypatch.setattr(environment, "_TAKEN", {})
