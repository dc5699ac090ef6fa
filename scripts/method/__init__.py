"""The figures of docs/method.md, drawn by `scripts/method_figures.py`."""
