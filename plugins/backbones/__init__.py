"""Backbone families. Start with `resnet.py`."""
