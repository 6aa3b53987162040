# One image for everything: workers, Beat, Flower, the exporter. Compose says which command a container runs.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/graft
# The dependencies first: they change less often than the code, and this layer is kept.
COPY requirements.image.lock ./
RUN /opt/graft/bin/pip install --require-hashes -r requirements.image.lock
COPY pyproject.toml README.md LICENSE ./
COPY graft graft
COPY config config
COPY tasks tasks
COPY workers workers
COPY compat compat
COPY scripts scripts
RUN /opt/graft/bin/pip install --no-deps --no-build-isolation . \
 && /opt/graft/bin/pip uninstall --yes --quiet hatchling pathspec pluggy trove-classifiers pip \
 && python -m compileall -q /opt/graft/lib

FROM ${PYTHON_IMAGE}
RUN mkdir -p /programs /var/lib/graft && chown 10001:10001 /var/lib/graft
COPY --from=build /opt/graft /opt/graft
# /programs is on the path: what callers send by name is imported from there, or from packages installed on top.
ENV PATH=/opt/graft/bin:$PATH PYTHONPATH=/programs PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/graft
USER 10001:10001
CMD ["celery", "-A", "graft", "worker"]
