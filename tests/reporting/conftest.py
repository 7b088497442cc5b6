"""Fixtures of reports that several test modules share."""

import pytest
from matplotlib.figure import Figure

from captcha_ray.reporting import figures


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the pictures, as they are drawn."""
    drawn: list[Figure] = []
    png = figures.png

    def keep(figure: Figure) -> bytes:
        drawn.append(figure)
        return png(figure)

    monkeypatch.setattr(figures, "png", keep)
    return drawn
