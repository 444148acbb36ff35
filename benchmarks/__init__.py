"""Measured comparisons, and load that checks what it gets back. Each module is a command; see RESULTS.md."""
