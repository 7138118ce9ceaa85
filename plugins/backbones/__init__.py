"""Backbone families."""
