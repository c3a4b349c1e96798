"""The API from the docstrings: one page a module."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    files = sorted((ROOT / "minilora").rglob("*.py"))
    names = [
        file.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in files
    ]
    names = [name for name in names if not name.startswith("minilora.practice.exercises.")]
    return {f"reference/{name}.md": f"# {name}\n" for name in names} | {
        "reference/index.md": "# Code\n\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
    }
