"""What a language model is told, what it may see, what it says, and whether the report supports it."""
