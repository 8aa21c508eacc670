"""Which model size and how many tokens use a compute budget best: sweep, fits, page."""
