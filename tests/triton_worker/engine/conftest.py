from tests.triton_worker.models.conftest import one_thread as one_thread
