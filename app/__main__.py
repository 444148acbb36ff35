"""``python -m app`` is ``multimodal-gateway``."""

from app.cli import main

if __name__ == "__main__":
    main()
