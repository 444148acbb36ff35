"""The command ``query_inframework``, where NeMo Export-Deploy's documentation looks for it."""

from clients.query_inframework import main

if __name__ == "__main__":
    main()
