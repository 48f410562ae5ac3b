"""A run's log as a picture: SVG, written by hand to need no plotting library."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 656, 200, 64


def plot(log: Sequence[Mapping[str, Any]]) -> str:
    """One panel each for the loss, the rate, and every held-out figure, over the steps."""
    names = ["loss", "learning_rate"]
    names += sorted({name for entry in log for name in entry if name.startswith("eval_")})
    series = {
        name: points
        for name in names
        if (points := [(entry["step"], entry[name]) for entry in log if name in entry])
    }
    panels = [_panel(name, points, i * HEIGHT) for i, (name, points) in enumerate(series.items())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT * len(panels)}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "".join(panels)
        + "</svg>\n"
    )


def _panel(name: str, points: Sequence[tuple[float, float]], top: float) -> str:
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    left, right, bottom = MARGIN, WIDTH - 16, top + HEIGHT - 28

    def place(x: float, y: float) -> str:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        up = (y - low) / ((high - low) or 1)
        return f"{left + across * (right - left):.1f},{bottom - up * (HEIGHT - 60):.1f}"

    line = " ".join(place(x, y) for x, y in points)
    dots = "".join(
        '<circle cx="{}" cy="{}" r="3" fill="#1f6feb"/>'.format(*place(x, y).split(","))
        for x, y in points
        if len(points) <= 30
    )
    return (
        f'<text x="{left}" y="{top + 18}" font-weight="bold">{escape(name)}</text>\n'
        f'<polyline points="{line}" fill="none" stroke="#1f6feb"/>{dots}\n'
        f'<text x="4" y="{bottom - HEIGHT + 64:.0f}">{high:.3g}</text>'
        f'<text x="4" y="{bottom}">{low:.3g}</text>\n'
        f'<text x="{left}" y="{bottom + 20}">step {xs[0]}</text>'
        f'<text x="{right}" y="{bottom + 20}" text-anchor="end">{xs[-1]}</text>\n'
    )
