"""``python -m anyres`` is the command ``anyres``."""

from anyres.cli.main import main

if __name__ == "__main__":
    main()
