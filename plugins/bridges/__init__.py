"""Bridges to other libraries of models."""
