"""Datasets of conversations and questions, for training, evaluation and RL."""
