"""OpenAI's chat completions and completions, on the same core as every other route."""
