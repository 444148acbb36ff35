"""The engine: schedule → run the model → sample, one step after the other, for all requests in flight."""
