"""A model as one file, in the layout of the original Stable Diffusion code: how it is told, and made a directory."""
