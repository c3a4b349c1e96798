"""The numbers that papers print, against their own formulas: reproduced, or not, and then the likely reason.

A row is reproduced when the formula's value, rounded to the digits that are printed, is what is printed. Where the
paper does not print the rank and it is chosen here so that the formula gives the number, nothing is reproduced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..adapters import DEFAULT
from ..display.tables import numbers_right, wide_console
from .count import count
from .memory import nf4_bits

LORA, QLORA = "Hu et al. (2021), LoRA", "Dettmers et al. (2023), QLoRA"
UNITS = {"": 1.0, "M": 1e6, "B": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "%": 1e-2, "x": 1.0, " bits": 1.0}


@dataclass(frozen=True)
class Row:
    """One printed number."""

    paper: str
    where: str  # table and column, or section
    what: str
    printed: str  # as it stands there: "4.7M"
    formula: str
    value: float  # of the formula
    reason: str = ""  # why they may differ
    fitted: bool = False  # r is not printed, but chosen to give the number

    def parts(self) -> tuple[float, float, int]:
        """The printed number, its unit, and how many digits stand after its point."""
        match = re.fullmatch(r"([\d.,]+)(.*)", self.printed)
        assert match is not None
        assert match[2] in UNITS, self.printed
        digits = match[1].replace(",", "")
        return float(digits), UNITS[match[2]], len(digits.partition(".")[2])

    @property
    def agrees(self) -> bool:
        number, unit, digits = self.parts()
        return round(self.value / unit, digits) == number

    @property
    def reproduced(self) -> bool:
        return self.agrees and not self.fitted

    @property
    def cut(self) -> bool:
        """Not rounded but cut off gives what is printed."""
        number, unit, digits = self.parts()
        return math.floor(self.value / unit * 10**digits) == round(number * 10**digits)

    @property
    def difference(self) -> float:
        """printed / value - 1"""
        number, unit, _ = self.parts()
        return number * unit / self.value - 1

    @property
    def verdict(self) -> str:
        if self.agrees:
            return "fitted, not reproduced" if self.fitted else "reproduced"
        return "cut off, not rounded" if self.cut else f"differs by {self.difference:+.2%}"

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "paper": self.paper, "where": self.where, "what": self.what, "printed": self.printed,
            "formula": self.formula, "value": self.value, "reproduced": self.reproduced, "verdict": self.verdict,
            "difference": self.difference, "reason": self.reason,
            "fitted": self.fitted,
        }  # fmt: skip


@cache
def trained(model: str, method: str, *targets: str, **words: Any) -> int:
    return count(model, method, targets=targets or None, tokens=1, **words).trainable


def lora_on_q_and_v(L: int, d: int, r: int) -> int:
    """Of L layers of width d: two square matrices in each, r (d + d) for each."""
    return L * 2 * (2 * d * r)


ALL_FOUR = ("q_proj", "k_proj", "v_proj", "o_proj")


def rows() -> Iterator[Row]:
    """Every row of the audit, paper by paper."""
    yield from gpt3()
    yield from gpt2()
    yield from glue()
    yield from claims()
    yield from others()


def gpt3() -> Iterator[Row]:
    def row(where: str, what: str, printed: str, formula: str, value: float, reason: str = "") -> Row:
        return Row(LORA, f"{where}, trainable parameters", f"GPT-3 175B, {what}", printed, formula, value, reason)

    total = trained("gpt3-175b", "full")
    d, L = 12288, 96
    yield row("table 4", "full fine-tuning", "175,255.8M", "12 d² L + 13 d L + V d + T d + 2 d", total,
              "not the layer sizes of table 2.1 of the GPT-3 paper; the paper does not say what it counts")  # fmt: skip
    yield row("table 4", "BitFit", "14.2M", "every bias", trained("gpt3-175b", "bitfit"),
              f"12 d L = {12 * d * L:,} fits; the biases are 9 d L of matrices, 2 d L of norms, and d")  # fmt: skip
    for where, prefix, infix, printed in (
        ("table 15", 32, 8, "0.4M"), ("table 4", 256, 8, "3.2M"), ("table 15", 512, 8, "6.4M"),
    ):  # fmt: skip
        value = trained("gpt3-175b", "prefix-embed", virtual_tokens=prefix + infix)
        reason = "l_p alone gives 0.39M" if prefix == 32 else ""
        yield row(where, f"PreEmbed, {prefix} + {infix} tokens", printed, "d (l_p + l_i)", value, reason)
    for where, prefix, infix, printed in (
        ("table 15", 2, 2, "5.1M"), ("table 15", 8, 0, "10.1M"), ("table 4", 8, 8, "20.2M"),
        ("table 15", 32, 4, "44.1M"), ("table 15", 64, 0, "76.1M"),
    ):  # fmt: skip
        value = trained("gpt3-175b", "prefix-layer", virtual_tokens=prefix + infix)
        yield row(where, f"PreLayer, {prefix} + {infix} tokens", printed, "L d (l_p + l_i)", value,
                  "no one number of layers gives the column")  # fmt: skip
    for where, r, printed in (("table 4", 1, "7.1M"), ("table 15", 4, "21.2M"), ("table 4", 8, "40.1M")):
        value = trained("gpt3-175b", "adapter-houlsby", r=r)
        yield row(where, f"AdapterH, r = {r}", printed, "2 L (2 d r + r + d)", value)
    for where, targets, r, printed in (
        ("table 4", ("v_proj",), 2, "4.7M"), ("table 15", ("q_proj", "v_proj"), 1, "4.7M"),
        ("table 15", ("q_proj", "v_proj"), 2, "9.4M"), ("table 15", ALL_FOUR, 1, "9.4M"),
        ("table 15", ("q_proj", "v_proj"), 4, "18.8M"), ("table 15", ALL_FOUR, 2, "18.8M"),
        ("table 4", ("q_proj", "v_proj"), 8, "37.7M"), ("table 15", ALL_FOUR, 4, "37.7M"),
        ("table 15", ("q_proj", "v_proj"), 64, "301.9M"), ("table 15", ALL_FOUR, 64, "603.8M"),
    ):  # fmt: skip
        value = trained("gpt3-175b", DEFAULT, *targets, r=r)
        names = ", ".join(target.removesuffix("_proj") for target in targets)
        reason = "as all of LoRA's rows here may be, but 603.8M" if printed in ("18.8M", "301.9M") else ""
        reason = "twice the 301.9M of the row above, itself cut off" if printed == "603.8M" else reason
        yield row(where, f"LoRA on {names}, r = {r}", printed, "Σ 2 d r", value, reason)


def gpt2() -> Iterator[Row]:
    def row(what: str, printed: str, formula: str, value: float, reason: str = "", fitted: bool = False) -> Row:
        return Row(LORA, "table 3, trainable parameters", what, printed, formula, value, reason, fitted)

    L, d = 24, 1024
    yield row("GPT-2 M, full fine-tuning", "354.92M", "every parameter", trained("gpt2-medium", "full"),
              f"4 d L = {4 * d * L:,} more would give it; what was counted is not said")  # fmt: skip
    yield row("GPT-2 L, full fine-tuning", "774.03M", "every parameter", trained("gpt2-large", "full"))
    yield row("GPT-2 M, the top 2 blocks", "25.19M", "2 (12 d² + 13 d)", trained("gpt2-medium", "top2"))
    for what, name, r, printed in (
        ("GPT-2 M", "gpt2-medium", 6, "0.37M"), ("GPT-2 M", "gpt2-medium", 224, "11.09M"),
        ("GPT-2 L", "gpt2-large", 8, "0.88M"), ("GPT-2 L", "gpt2-large", 248, "23.00M"),
    ):  # fmt: skip
        value = trained(name, "adapter-lin", r=r)
        yield row(f"{what}, AdapterL, r = {r} (not printed)", printed, "L (2 d r + r + d) + 2 L d", value,
                  "the r is fitted to the number", fitted=True)  # fmt: skip
    yield row("GPT-2 M, AdapterH, r = 112 (not printed)", "11.09M", "2 L (2 d r + r + d)",
              trained("gpt2-medium", "adapter-houlsby", r=112), "no whole r gives it; L d more would",
              fitted=True)  # fmt: skip
    yield row("GPT-2 M, LoRA on q and v, r = 4", "0.35M", "Σ 2 d r", lora_on_q_and_v(L, d, r=4),
              "no whole r gives it; the released checkpoint holds what the formula says")  # fmt: skip
    yield row("GPT-2 L, LoRA on q and v, r = 4", "0.77M", "Σ 2 d r", lora_on_q_and_v(36, 1280, r=4),
              "no whole r gives it")  # fmt: skip


def glue() -> Iterator[Row]:
    def row(what: str, printed: str, formula: str, value: float, reason: str = "", where: str = "table 2") -> Row:
        return Row(LORA, f"{where}, trainable parameters", what, printed, formula, value, reason)

    yield row("RoBERTa base, full fine-tuning", "125.0M", "every parameter", trained("roberta-base", "full"),
              "rounded to whole millions")  # fmt: skip
    yield row("RoBERTa base, BitFit", "0.1M", "every bias", trained("roberta-base", "bitfit"))
    yield row("RoBERTa base, LoRA on q and v, r = 8", "0.3M", "Σ 2 d r", trained("roberta-base", DEFAULT, r=8))
    yield row("RoBERTa large, LoRA on q and v, r = 8", "0.8M", "Σ 2 d r", trained("roberta-large", DEFAULT, r=8))
    for method, r, printed, reason in (
        ("pfeiffer", 16, "0.8M", ""), ("pfeiffer", 64, "3.0M", "r = 61 would give it"),
        ("houlsby", 8, "0.8M", ""), ("houlsby", 64, "6.0M", "r = 60 would give it"),
    ):  # fmt: skip
        value = trained("roberta-large", f"adapter-{method}", r=r)
        blocks = "2 L" if method == "houlsby" else "L"
        what = f"RoBERTa large, Adapter{method[0].upper()}, r = {r}"
        yield row(what, printed, f"{blocks} (2 d r + r + d)", value, reason)
    for r, where, reason in ((16, "table 2", ""), (8, "table 10", "the repository's scripts train r = 16")):
        value = lora_on_q_and_v(48, 1536, r)
        yield row(f"DeBERTa XXL, LoRA on q and v, r = {r}", "4.7M", "Σ 2 d r", value, reason, where)


def claims() -> Iterator[Row]:
    """What the LoRA paper's text derives from its tables."""
    r4 = trained("gpt3-175b", DEFAULT, "q_proj", "v_proj", r=4)
    total = trained("gpt3-175b", "full")
    yield Row(LORA, "section 4.2", "checkpoint of GPT-3 in 16 bits", "350GB", "2 bytes × total", 2 * total,
              "175B × 2 bytes")  # fmt: skip
    yield Row(LORA, "section 4.2", "checkpoint of LoRA, r = 4 on q and v, in 16 bits", "35MB", "2 bytes × trained",
              2 * r4, "36.0 MiB; 35 follows from 350 GB and 10,000x")  # fmt: skip
    yield Row(LORA, "section 4.2", "how many times smaller", "10,000x", "total / trained", total / r4,
              "said to be roughly so")  # fmt: skip
    yield Row(LORA, "section 4.2", "speed-up from 32.5 to 43.1 tokens/s", "25%", "1 - 32.5 / 43.1", 1 - 32.5 / 43.1,
              "25% less time; as throughput it is 43.1 / 32.5 - 1 = 33% more")  # fmt: skip
    yield Row(LORA, "section 7.3", "amplification at r = 4, of 6.91 and 0.32 in table 7", "21.5x",
              "‖ΔW‖ / ‖UᵀWVᵀ‖", 6.91 / 0.32, "the two norms are rounded themselves")  # fmt: skip
    for r, printed in ((4, "0.02"), (64, "0.33")):
        yield Row(LORA, "table 7, random", f"‖UᵀWVᵀ‖ for random U, V of rank {r}, ‖W‖ = 61.95", printed,
                  "‖W‖ r / d", 61.95 * r / 12288, "one draw; the formula is its mean")  # fmt: skip


def others() -> Iterator[Row]:
    n = 2**22
    single, double = nf4_bits(n, False) / n - 4, nf4_bits(n, True) / n - 4
    yield Row(QLORA, "section 3", "scales of NF4, a parameter", "0.5 bits", "32 / 64", single)
    yield Row(QLORA, "section 3", "the same, double quantised", "0.127 bits", "8 / 64 + 32 / (64 · 256)", double)
    yield Row(QLORA, "section 3", "what double quantisation saves", "0.373 bits", "the difference", single - double)
    yield Row(QLORA, "section 3", "the same for 65B parameters", "3GB", "65e9 × bits / 8", 65e9 * (single - double) / 8)
    yield Row(QLORA, "section 1", "full fine-tuning of 65B parameters in 16 bits", "780GB", "12 bytes × 65e9",
              12 * 65e9)  # fmt: skip


def show_audit(found: Collection[Row]) -> None:
    """The audit as a table, and the verdict in a line."""
    console = wide_console()
    for paper in dict.fromkeys(row.paper for row in found):
        columns = "what, where, by which formula", "printed", "by formula", "verdict"
        table = numbers_right(paper, *columns, words=(0, 3), show_lines=True)
        table.columns[0].ratio = table.columns[3].ratio = 1
        for row in (row for row in found if row.paper == paper):
            verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
            value = f"{row.value:,.0f}" if row.value > 1000 else f"{row.value:.4g}"
            table.add_row(f"{row.what}\n{row.where}\n{row.formula}", row.printed, value, verdict)
        console.print(table)
    console.print(summary(found), soft_wrap=True)


def summary(found: Collection[Row]) -> str:
    good, fitted = sum(row.reproduced for row in found), sum(row.fitted and row.agrees for row in found)
    cut = sum(row.cut and not row.agrees for row in found)
    return (
        f"{good} of {len(found)} numbers follow from their formulas; {fitted} more agree at an r that is not printed "
        f"and was fitted to them; {cut} are only cut off where they should be rounded; "
        f"{len(found) - good - fitted - cut} differ"
    )
