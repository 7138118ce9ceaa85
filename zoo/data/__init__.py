"""Data sets and command-line inputs: find items, split them, decode images and tokenise texts.

Start with `dataset.py`; `images.py` and `tokenizers.py` turn items into arrays.
"""
