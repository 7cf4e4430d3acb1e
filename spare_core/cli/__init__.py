"""The ``spare`` command: options in, one call, text or JSON out; one file a command group."""


def main() -> None:
    """Run the command line."""
    from spare_core.cli.root import run  # nothing else of this package needs all commands

    run()
