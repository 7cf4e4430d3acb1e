"""The ``spare`` command: options in, one call, text or JSON out; one file a command group."""
