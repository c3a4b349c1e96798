"""Models people use.

families/       one family a file: how a model is built, and its names in Hugging Face's and GGUF files. Gemma 3 is
                families/gemma3_text.py; new kinds of layers go to nn/
parts.py        LayerFactory makes the layers that families are built from
config.py       Config, the shape of a model; config_json.py reads and writes config.json
transformer.py  Transformer, a whole model
pretrained.py   load_pretrained; saving.py writes a model back; names.py has the names of its tensors
sources.py      where a model is: a folder, a file, a package, or the Hub (hub.py)
gguf.py         models in GGUF files (gguf_file.py the format, gguf_tokens.py the tokenizer)
tokenizer.py    text to token ids; tokenizer_classes.py reads tokenizer.json; chat_template.py
generation.py   text from a language model
"""
