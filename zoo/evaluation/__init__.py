"""How good a model is: metrics, `zoo evaluate`, and the report that fine-tuning writes.

Start with `metrics.py`; `report.py` writes the report.
"""
