"""The example workflows as they are drawn: one file for each template, or for a family of them."""
