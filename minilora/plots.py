"""Figures."""

from __future__ import annotations

import io
from typing import Any

BASE, FULL, LORA = "#8a8a8a", "#1f5fa8", "#d9621d"


def report_figure(report: dict[str, Any]) -> bytes:
    """A PNG of the demo on one page: learning curves, what is trained and kept, the rank of what was learned."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=110)
    curves, bars, spectra = figure.subplots(1, 3)
    learning_curves(curves, report)
    memory_bars(bars, report)
    spectrum_curves(spectra, report)
    target = report["target"]["bits_per_byte"]
    figure.suptitle(
        f"LoRA closes {report['lora']['share_of_gain']:.0%} of full fine-tuning's gain "
        f"({target['base']:.2f} → {target['lora']:.2f} against {target['full']:.2f} bits per byte of test text) "
        f"with {report['lora']['trainable'] / report['base']['params']:.1%} of the parameters",
        fontsize=13,
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def learning_curves(ax: Any, report: dict[str, Any]) -> None:
    for name, color in (("full", FULL), ("lora", LORA)):
        curve = report[name]["curve"]
        ax.plot(range(1, len(curve["train"]) + 1), curve["train"], color=color, alpha=0.2, lw=1)
        steps, values = zip(*curve["held_out"], strict=True)
        ax.plot(steps, values, "o-", ms=4, color=color, label={"full": "full fine-tuning", "lora": "LoRA"}[name])
    ax.axhline(report["full"]["curve"]["held_out"][0][1], color=BASE, ls="--", lw=1, label="base model, frozen")
    ax.set(title="Learning Python source", xlabel="step", ylabel="bits per byte (validation text; faint: training)")
    ax.legend(frameon=False)


def memory_bars(ax: Any, report: dict[str, Any]) -> None:
    kinds = ["weights", "cache", "gradients", "optimizer"]
    for offset, name, color in ((-0.2, "full", FULL), (0.2, "lora", LORA)):
        sizes = [report[name]["memory"][kind] / 2**20 for kind in kinds]
        drawn = ax.bar([i + offset for i in range(4)], sizes, 0.38, color=color,
                       label=f"{report[name]['label']}: {report[name]['trainable']:,} trained")  # fmt: skip
        ax.bar_label(drawn, [f"{size:.2g}" if size < 10 else f"{size:.0f}" for size in sizes], fontsize=9)
    ax.set_xticks(range(4), kinds)
    ax.set_yscale("log")
    ax.set(title="Memory of one training step", ylabel="MiB (log scale)")
    ax.set_ylim(top=ax.get_ylim()[1] * 4)
    ax.legend(frameon=False, loc="upper right")


def spectrum_curves(ax: Any, report: dict[str, Any]) -> None:
    for name, color in (("full", FULL), ("lora", LORA)):
        curve = report["rank"][name]["mean_spectrum"]
        label = f"{report[name]['label']}: effective rank {report['rank'][name]['effective_rank']:.1f}"
        ax.plot(range(1, len(curve) + 1), curve, color=color, lw=2, label=label)
    ax.axvline(report["lora"]["rank"], color=BASE, ls=":", lw=1, label=f"r = {report['lora']['rank']}")
    ax.set_yscale("log")
    ax.set_ylim(0.03, 1.2)
    ax.set(title="Singular values of ΔW, mean over the layers", xlabel="index i", ylabel="σᵢ / σ₁ (log scale)")
    ax.legend(frameon=False)
