"""From a prompt, an image and a voice to a clip."""
