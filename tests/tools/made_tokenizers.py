"""Small tokenizers of each kind."""

import pytest

from minilora.data import english
from minilora.models.subword_tokenizer import SubwordTokenizer
from minilora.models.tokenizer import ByteTokenizer

tokenizers = pytest.importorskip("tokenizers")

CHATML = (
    "{% for message in messages %}{{ bos_token }}{{ message.role }}\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)


def word_piece():
    """As BERT's: lower case, words in pieces, [CLS] ... [SEP]; the file holds a truncation and a padding."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.train_from_iterator(
        [english().test.decode()], tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=names)
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=8)
    return made


def byte_level():
    """As GPT-2's and SmolLM2's: every text comes back as it was."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|turn|>", "<|done|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([english().test.decode() + " 日本語 é"], trainer)
    return made


def byte_fallback():
    """As Llama 2's: ▁ for a space, and single bytes for what the vocabulary does not have."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for piece in ["▁", "▁a", "a", "b", "▁ab", "ab", "é", ",", "▁▁"]:
        vocab[piece] = len(vocab)
    merges = [("▁", "a"), ("▁a", "b"), ("a", "b"), ("▁", "▁")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


NAMES = {
    "word_piece": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
    "byte_level": {"bos_token": "<|turn|>", "eos_token": "<|done|>"},
    "byte_fallback": {"bos_token": "<s>", "eos_token": "</s>"},
}
MADE = {
    "word_piece": SubwordTokenizer(word_piece(), NAMES["word_piece"]),
    "byte_level": SubwordTokenizer(byte_level(), NAMES["byte_level"], CHATML),
    "byte_fallback": SubwordTokenizer(byte_fallback(), NAMES["byte_fallback"]),
    "bytes": ByteTokenizer(),
}
