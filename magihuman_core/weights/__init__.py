"""MagiHuman's names: which tensor is what in every known layout, and what may be done with it."""
