"""Makes a checked ONNX file in fp32, fp16 or int8 from a registry row or a bundle.

Start with `export.py`. `parity.py` checks a file against the original model; `build.py` makes the first graph of a row.
"""
