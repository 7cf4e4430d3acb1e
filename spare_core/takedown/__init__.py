"""Takedown lists: what is asked for, by whom and until when, and what became of it.

``request`` is what a list says, ``reading`` reads lists, ``conflicts`` finds what cannot go together. ``ledger`` keeps
what became of each, ``standings`` says what is asked for together, ``planning`` what would be done. ``work`` and
``bundling`` do it as far as the ledger goes, under ``leases``; ``erasing`` asks the model, and ``workflow`` is what a
pipeline's tasks call.
"""
