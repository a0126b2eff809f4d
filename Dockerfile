# The two images: `train` (Ray head, workers and jobs; CPU and GPU alike) and `controller` (no torch, no Ray).
#   docker build --target train -t zhongjing:0.1.0 .
#   docker build --target controller -t zhongjing:0.1.0-controller .
# Dependencies lie in layers of their own, below the code: a change of code sends about a megabyte.
# Site settings are build arguments of the tools' own names, e.g. --build-arg UV_DEFAULT_INDEX=URL --build-arg PIP_INDEX_URL=URL;
# an index that needs a password is better named in a proxy or mirror: arguments stay readable in an image's history.
ARG BASE_IMAGE=debian:bookworm-slim

# ---- What every stage has: Debian's Python, and a user without rights.
FROM ${BASE_IMAGE} AS base
# wget: probes of KubeRay call it. tini: reaps what a killed job leaves.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates python3 tini wget \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 zhongjing \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/zhongjing --shell /bin/bash zhongjing \
    # A login shell (KubeRay can start one) sets PATH anew.
    && printf 'export PATH=/opt/zhongjing/bin:$PATH\n' > /etc/profile.d/zhongjing.sh
ENV PATH=/opt/zhongjing/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    HOME=/home/zhongjing \
    PYTHONUNBUFFERED=1

# ---- Tools of the build; nothing of this stage is in an image.
FROM base AS tools
ARG UV_VERSION=0.13.9
ARG PIP_INDEX_URL
ARG PIP_CERT
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}" "setuptools>=77"

# ---- The names of the dependencies alone, so that another change of pyproject.toml installs nothing again.
FROM tools AS requirements
COPY pyproject.toml constraints.txt /src/
RUN mkdir /requirements && cd /src && python3 -c 'import sys, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = project["optional-dependencies"]; \
images = {"train": extras["train"] + extras["construct"], "controller": extras["controller"]}; \
[open(f"/requirements/{image}.txt", "w").write("\n".join(sorted(project["dependencies"] + needed)) + "\n") for image, needed in images.items()]' \
    && grep -v '^#' constraints.txt > /requirements/constraints.txt

# ---- The code, byte-compiled: pods have a read-only root.
FROM tools AS code
COPY pyproject.toml README.md LICENSE /src/
COPY zhongjing /src/zhongjing
COPY jobs /src/jobs
RUN cd /src && umask 022 \
    && /opt/tools/bin/uv venv --quiet --python /usr/bin/python3 /opt/zhongjing \
    && /opt/tools/bin/uv build --quiet --wheel --no-build-isolation --python /opt/tools/bin/python --out-dir /dist . \
    && PYC_INVALIDATION_MODE=UNCHECKED_HASH /opt/tools/bin/uv pip install --quiet --offline --no-deps --compile-bytecode \
        --python /opt/zhongjing/bin/python /dist/*.whl \
    && mkdir /code && cd / && tar -c opt/zhongjing/bin/zhongjing opt/zhongjing/lib/python3*/site-packages/zhongjing \
        opt/zhongjing/lib/python3*/site-packages/jobs opt/zhongjing/lib/python3*/site-packages/zhongjing-*.dist-info \
        | tar -x -C /code

# ---- Controller: watches TrainingPipelines and submits jobs.
FROM tools AS controller-dependencies
ARG UV_DEFAULT_INDEX
ARG UV_CACHE_DIR=/root/.cache/uv
ARG SSL_CERT_FILE
COPY --from=requirements /requirements/controller.txt /requirements/constraints.txt /opt/requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/tools/bin/uv venv --quiet --python /usr/bin/python3 /opt/zhongjing \
    && UV_LINK_MODE=copy /opt/tools/bin/uv pip install --compile-bytecode --python /opt/zhongjing/bin/python \
        --constraint /opt/requirements/constraints.txt --requirement /opt/requirements/controller.txt

FROM base AS controller
COPY --from=controller-dependencies /opt/zhongjing /opt/zhongjing
COPY --from=code /code/ /
ARG ZHONGJING_COMMIT=unknown
ENV ZHONGJING_COMMIT=${ZHONGJING_COMMIT}
LABEL org.opencontainers.image.title="zhongjing controller" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${ZHONGJING_COMMIT}"
USER 10001:10001
WORKDIR /home/zhongjing
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "zhongjing.controller", "--config", "/etc/zhongjing/release/release.yaml"]

# ---- Train: the same for head, workers and jobs. torch is the index's CUDA build and runs on CPUs too.
# Installed in place: copying six gigabytes from another stage would cost more than the one per cent that uv adds.
FROM base AS train-dependencies
ARG UV_DEFAULT_INDEX
ARG UV_CACHE_DIR=/root/.cache/uv
ARG SSL_CERT_FILE
# ibverbs, rdmacm, numa: NCCL loads them where there is RDMA.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ibverbs-providers libibverbs1 librdmacm1 libnuma1 \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
COPY --from=tools /opt/tools/bin/uv /usr/local/bin/uv
COPY --from=requirements /requirements/train.txt /requirements/constraints.txt /opt/requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --quiet --python /usr/bin/python3 /opt/zhongjing \
    && UV_LINK_MODE=copy uv pip install --compile-bytecode --python /opt/zhongjing/bin/python \
        --constraint /opt/requirements/constraints.txt --requirement /opt/requirements/train.txt

FROM train-dependencies AS train
COPY --from=code /code/ /
ARG ZHONGJING_COMMIT=unknown
ENV ZHONGJING_COMMIT=${ZHONGJING_COMMIT}
LABEL org.opencontainers.image.title="zhongjing" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${ZHONGJING_COMMIT}"
USER 10001:10001
WORKDIR /home/zhongjing
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "zhongjing", "--help"]
