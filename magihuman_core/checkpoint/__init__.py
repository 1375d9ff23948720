"""File formats of weights: opening, reading, writing. Knows no model."""
