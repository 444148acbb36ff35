"""Around the engine: chat template, tokenizer and pictures on the way in, text on the way out."""
