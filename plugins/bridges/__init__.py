"""Bridges to other libraries of models. Start with `timm.py`."""
