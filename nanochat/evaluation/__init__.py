"""Measures of a model: bits per byte, CORE, and accuracies of chat models."""
