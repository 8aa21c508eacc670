"""How good a model is: bits per byte, CORE, and accuracies of chat models."""
