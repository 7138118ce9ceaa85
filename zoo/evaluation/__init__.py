"""The quality of a model: metrics, `zoo evaluate`, and the report that fine-tuning writes.

Start with `metrics.py`; `report.py` writes the report.
"""
