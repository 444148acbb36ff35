"""The model families our engine runs, each in a folder of its own."""
