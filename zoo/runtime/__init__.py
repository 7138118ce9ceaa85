"""ONNX Runtime: devices, sessions, batches, answers.

Start with `session.py`; below it `pipeline.py` makes batches and `ort.py` creates ONNX Runtime's sessions.
"""
