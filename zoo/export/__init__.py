"""From a registry row or a bundle to a checked ONNX file in fp32, fp16 or int8.

Start with `export.py`; `parity.py` is the check against the original model, `build.py` makes the first graph of a row.
"""
