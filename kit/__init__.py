"""Agentic retrieval-augmented generation on models that run on one's own machine."""

__version__ = "0.1.0"
