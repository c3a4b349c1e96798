"""The figure of the demo."""

from __future__ import annotations

from typing import Any

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes, whole_numbers


def report_figure(report: dict[str, Any]) -> bytes:
    """A PNG of the demo on one page: learning curves, what is trained and kept, the rank of what was learned."""
    lora, base, target = report["lora"], report["base"], report["target"]["bits_per_byte"]
    figure = new_figure(
        f"LoRA closes {lora['share_of_gain']:.0%} of full fine-tuning's gain "
        f"with {lora['trainable'] / base['params']:.1%} of the parameters\n"
        f"(bits per byte of test text: {target['base']:.2f} → {target['lora']:.2f}, against {target['full']:.2f})",
        *(18.6, 7, 5),
    )
    curves, bars, spectra = figure.subplots(1, 3)
    learning_curves(curves, report)
    memory_bars(bars, report)
    spectrum_curves(spectra, report)
    for ax, top in ((curves, 0.9), (bars, 1), (spectra, 1)):  # in the first, below the base
        ax.legend(frameon=False, fontsize=FONT_SIZE - 1, handlelength=1.5, loc="upper right", bbox_to_anchor=(1, top))
    return png_bytes(figure)


def learning_curves(ax: Any, report: dict[str, Any]) -> None:
    ax.plot([], [], color=BASE, alpha=0.5, lw=1, label="training text (faint)")
    for name, color in (("full", FULL), ("lora", LORA)):
        curve = report[name]["curve"]
        ax.plot(range(1, len(curve["train"]) + 1), curve["train"], color=color, alpha=0.2, lw=1)
        steps, values = zip(*curve["held_out"], strict=True)
        ax.plot(steps, values, "o-", lw=2.5, ms=7, color=color, label=report[name]["label"])
    base = report["full"]["curve"]["held_out"][0][1]
    ax.axhline(base, color=BASE, ls="--", lw=2)
    ax.annotate("base model, frozen", (1, base), (-8, 5), ("axes fraction", "data"), textcoords="offset points",
                ha="right", fontsize=FONT_SIZE - 1)  # fmt: skip
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, max(top, base + 0.1 * (base - bottom)))
    ax.set(title="Learning Python source: validation text", xlabel="step", ylabel="bits per byte")
    whole_numbers(ax.xaxis)


def memory_bars(ax: Any, report: dict[str, Any]) -> None:
    kinds = ["weights", "cache", "gradients", "optimizer"]
    for offset, name, color in ((-0.2, "full", FULL), (0.2, "lora", LORA)):
        sizes = [report[name]["memory"][kind] / 2**20 for kind in kinds]
        drawn = ax.bar([i + offset for i in range(4)], sizes, 0.38, color=color,
                       label=f"{report[name]['label']}: {report[name]['trainable']:,} trained")  # fmt: skip
        ax.bar_label(drawn, [f"{size:.2g}" if size < 10 else f"{size:.0f}" for size in sizes], fontsize=FONT_SIZE - 2)
    ax.set_xticks(range(4), kinds)
    ax.set_yscale("log")
    ax.set(title="Memory of one training step", ylabel="MiB (log scale)")
    ax.set_ylim(top=ax.get_ylim()[1] * 6)


def spectrum_curves(ax: Any, report: dict[str, Any]) -> None:
    for name, color in (("full", FULL), ("lora", LORA)):
        curve = report["rank"][name]["mean_spectrum"]
        label = f"{report[name]['label']}: effective rank {report['rank'][name]['effective_rank']:.1f}"
        ax.plot(range(1, len(curve) + 1), curve, color=color, lw=3, label=label)
    ax.vlines(report["lora"]["rank"], 0.03, 1, color=BASE, ls=":", lw=2, label=f"r = {report['lora']['rank']}")
    ax.set_yscale("log")
    ax.set_ylim(0.03, 3)
    ax.set(title="Singular values of ΔW, mean of the layers", xlabel="index i", ylabel="σᵢ / σ₁ (log scale)")
    whole_numbers(ax.xaxis)
