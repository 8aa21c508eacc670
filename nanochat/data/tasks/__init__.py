"""Data sets of conversations and questions: to train on, to be measured and rewarded by."""
