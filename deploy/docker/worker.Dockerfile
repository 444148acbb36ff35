# The worker: Triton (inside nvidia-pytriton) and our engine. Build from the repository's root:
#   docker build --file deploy/docker/worker.Dockerfile --tag multimodal-worker .
# torch comes with CUDA by default, and runs without a GPU too. For its much smaller CPU build, name the index that the
# PyTorch project publishes it in:
#   --build-arg TORCH_INDEX_URL=...
ARG PYTHON_VERSION=3.12

# torch alone, then the other dependencies: each layer changes only with what it holds. No sources are here yet, so that
# only metadata is installed.
FROM python:${PYTHON_VERSION}-slim-bookworm AS dependencies
ARG TORCH_INDEX_URL=
WORKDIR /source
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt LICENSE ./
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[worker,tracing]'

FROM dependencies AS wheel
COPY protocol protocol
COPY triton_worker triton_worker
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON_VERSION}-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin multimodal
COPY --from=dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index --force-reinstall /wheel/*.whl
USER 10001:10001
WORKDIR /tmp
# Triton's HTTP, gRPC and metrics
EXPOSE 8000 8001 8002
ENTRYPOINT ["multimodal-worker"]
