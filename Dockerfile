# One image for every task of the pipelines, for the image server, and for MLflow's server.
#
#   docker build -t registry.example.org/spare:0.1.0 .                       NVIDIA GPUs: CUDA comes with torch's wheels
#   docker build -t registry.example.org/spare:0.1.0-cpu --build-arg DEVICE=cpu .
#
# Needs BuildKit. Pin BASE to a digest where you build for production. Two secrets, of which nothing stays in the image:
# --secret id=pip,src=pip.conf for an index of your own, --secret id=ca,src=FILE for the authorities of your proxy.

ARG BASE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE} AS python
# Python 3.11 is Debian 12's own. Debian takes the old release of a package away with each security update: a version
# written here would break the build, and without one it gets the update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get upgrade -y --no-install-recommends \
    && apt-get install -y --no-install-recommends ca-certificates media-types python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/*.log

FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /build/tools \
    && python3 -m venv --without-pip /opt/spare
WORKDIR /build
ARG DEVICE=cuda
# Where torch's wheel for CPUs is to be found; the others come from PyPI. Wherever a file comes from, its hash decides.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY image/requirements/build.txt image/requirements/image-${DEVICE}.txt requirements/
# Some packages come as sources only: their wheels are made by the setuptools of build.txt, not by the newest there is.
# Then what no program reads at run time goes: tests, C++ headers and static libraries.
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    && if [ "$DEVICE" = cpu ] && [ -n "$TORCH_INDEX" ]; then export PIP_EXTRA_INDEX_URL="$TORCH_INDEX"; fi \
    && tools/bin/pip install --quiet --require-hashes --requirement requirements/build.txt \
    && tools/bin/pip wheel --quiet --require-hashes --no-deps --no-build-isolation --wheel-dir wheels \
        --requirement "requirements/image-$DEVICE.txt" \
    && tools/bin/pip --python /opt/spare/bin/python install --quiet --no-deps --no-index wheels/*.whl \
    && rm -rf wheels \
    && find /opt/spare/lib -depth -type d \( -name tests -o -name test \) -exec rm -rf {} + \
    && rm -rf /opt/spare/lib/python3.11/site-packages/torch/include \
    && find /opt/spare/lib -name '*.a' -delete

FROM build AS own
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY spare_core spare_core
COPY pipelines pipelines
# Below /build/own as it will lie below /: so the final image has SPARE in a small layer over that of its dependencies.
RUN tools/bin/pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist . \
    && tools/bin/pip --python /opt/spare/bin/python install --quiet --no-deps --no-index --root /build/own dist/*.whl
COPY serving own/srv/serving

FROM python AS final
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG DEVICE=cuda
LABEL org.opencontainers.image.title="SPARE" \
      org.opencontainers.image.description="Erase concepts from text-to-image diffusion models with small, reversible adapters" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="$BASE" \
      io.spare.device="$DEVICE"
# Uid and gid are numbers, so that Kubernetes can see that they are not root's. Only /var/cache/spare and /tmp are ever
# written to: with a read-only root both have to be mounts.
RUN groupadd --gid 65532 spare \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin spare \
    && install --directory --owner 65532 --group 65532 --mode 0775 /var/cache/spare
COPY --from=build /opt/spare /opt/spare
COPY --from=own /build/own /
# Caches that hold models last (a volume), those of a process do not. The driver of NVIDIA GPUs comes from the node.
ENV PATH=/opt/spare/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=spare \
    HF_HOME=/var/cache/spare/huggingface \
    SPARE_CACHE=/var/cache/spare/store \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["spare"]
CMD ["--help"]
