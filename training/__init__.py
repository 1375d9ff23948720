"""How the demo model's weights were made: drawn clips of cartoon people who speak, and the training code."""
