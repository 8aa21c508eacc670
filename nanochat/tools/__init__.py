"""Tools a model can call: a calculator, and Python in a sandbox."""
