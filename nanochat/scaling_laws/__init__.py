"""Which size and how many tokens make the best use of compute: sweep, fits, page."""
