# The gateway: FastAPI in front of Triton, without torch. Build from the repository's root:
#   docker build --file deploy/docker/gateway.Dockerfile --tag multimodal-gateway .
ARG PYTHON_VERSION=3.12

# The dependencies alone: this layer changes only with them. No sources are here yet, so that only metadata is installed.
# The full image has strip, which makes two of them 30 MB smaller; their tests are another 14 MB.
FROM python:${PYTHON_VERSION}-bookworm AS dependencies
WORKDIR /source
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt LICENSE ./
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[gateway,tracing]' \
    && find /opt/venv \( -name '_ml_dtypes*.so' -o -name 'rapidjson*.so' \) -exec strip --strip-unneeded {} + \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} +

FROM dependencies AS wheel
COPY protocol protocol
COPY app app
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON_VERSION}-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin multimodal
COPY --from=dependencies /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index --force-reinstall /wheel/*.whl
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
ENTRYPOINT ["multimodal-gateway"]
