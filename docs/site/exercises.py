"""The exercises' statements: one page for each exercise and language."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    names = sorted(file.stem for file in (ROOT / "minilora/practice/exercises").glob("ex*.py"))
    made = {f"exercises/{language}/{name}.md": f"# {name}\n" for language in ("en", "zh") for name in names}
    for language in ("en", "zh"):
        made[f"exercises/{language}/index.md"] = (
            "# Exercises\n\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
        )
    return made
