"""The colours and choices of this world: name -> RGB 0..255, wide enough apart to be read back."""

HAIR_COLOURS = {
    "black": (34, 32, 44),
    "brown": (112, 66, 34),
    "blond": (242, 204, 84),
    "red": (206, 78, 32),
    "grey": (164, 168, 180),
}
SKIN_TONES = {
    "fair": (255, 222, 194),
    "tan": (233, 178, 128),
    "brown": (180, 118, 80),
    "dark": (126, 80, 62),
}
SHIRT_COLOURS = {
    "red": (212, 48, 58),
    "blue": (46, 92, 200),
    "green": (40, 146, 82),
    "yellow": (246, 196, 48),
    "purple": (128, 66, 168),
    "white": (242, 242, 246),
}
WALL_COLOURS = {
    "sky": (158, 208, 242),
    "mint": (172, 228, 190),
    "pink": (250, 182, 200),
    "cream": (252, 238, 204),
    "lavender": (200, 184, 238),
    "teal": (58, 130, 142),
}
HAIR_STYLES = ("short", "long", "bun", "curly")
MOODS = ("happy", "calm", "sad")
PEOPLE = ("woman", "man", "child")
CHOICES = {
    "person": PEOPLE,
    "hair": tuple(HAIR_COLOURS),
    "hairstyle": HAIR_STYLES,
    "skin": tuple(SKIN_TONES),
    "shirt": tuple(SHIRT_COLOURS),
    "wall": tuple(WALL_COLOURS),
    "glasses": ("glasses", "none"),
    "mood": MOODS,
}
