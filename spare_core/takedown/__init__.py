"""Takedown lists: what is asked for, by whom and until when, and what became of it.

``request`` is what a list says, ``reading`` reads lists, ``conflicts`` finds what cannot go together.
"""
