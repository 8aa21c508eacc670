"""The stages and tools, one file each: `nanochat <stage>`, or `python -m scripts.<stage>`."""
