"""The style sheet of the report: `report.css`, and the classes of its colours."""

from __future__ import annotations

from importlib.resources import files


def style_sheet(n_colours: int, n_shades: int) -> str:
    """The style sheet, with the classes of so many colours of dtypes, and shades of how much is stored."""
    rules = [(files("pytreeckpt.cli") / "report.css").read_text(encoding="utf-8").rstrip()]
    for number in range(n_colours):
        colour = f"var(--d{number})"
        rules.append(f".d{number} rect, .legend b.d{number} {{ fill: {colour}; background: {colour}; }}")
    for shade in range(n_shades):
        colour = f"color-mix(in srgb, var(--s9) {100 * shade // (n_shades - 1)}%, var(--s0))"
        ink = "var(--ink)" if shade < n_shades // 2 else "var(--card)"
        rules += [
            f".legend b.s{shade} {{ background: {colour}; }}",
            f"#by-stored:checked ~ svg .s{shade} rect {{ fill: {colour}; }}",
            f"#by-stored:checked ~ svg .s{shade} text {{ fill: {ink}; }}",
        ]
    return "\n".join(rules)
