"""Data sets and command-line inputs: finding items, splitting them, decoding images and tokenising texts.

Start with `dataset.py`; `images.py` and `tokenizers.py` turn items into arrays.
"""
