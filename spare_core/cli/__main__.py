"""``python -m spare_core.cli`` is ``spare``."""

from spare_core.cli import main

if __name__ == "__main__":
    main()
