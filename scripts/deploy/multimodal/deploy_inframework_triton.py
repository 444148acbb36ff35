"""The command ``deploy_inframework_triton``, where NeMo Export-Deploy's documentation looks for it."""

from triton_worker.deploy import main

if __name__ == "__main__":
    main()
