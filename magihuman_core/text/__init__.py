"""The text encoder, and the form of its prompts."""
