"""ONNX graphs as data: edit, cut, join, fuse. No session is made here.

Start with `edit.py`; `prefix.py` is the preprocessing of images, `head.py` the trained head.
"""
