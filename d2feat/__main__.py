"""``python -m d2feat`` is ``d2feat``."""

from .cli import main

if __name__ == "__main__":
    main()
