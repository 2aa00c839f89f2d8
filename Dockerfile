# rerankd on a CPU. docs/deploy.md says how to build and run the image.
FROM python:3.12-slim AS wheel
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The extension is optional: an image without kernels must not be built unnoticed.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m zipfile -l /wheels/rerankd-*.whl | grep _kernels

FROM python:3.12-slim
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.11"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir /wheels/rerankd-*.whl
RUN useradd --uid 1000 --create-home rerankd && mkdir /models && chown rerankd: /models
USER 1000
WORKDIR /home/rerankd
# HF_HUB_OFFLINE=1 at run time forbids all downloads: the models have to be in the volume then.
ENV HF_HOME=/models \
    PYTHONUNBUFFERED=1 \
    RERANKD_HOST=0.0.0.0 \
    RERANKD_PORT=8000
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['RERANKD_PORT']}/health\", timeout=4)"]
ENTRYPOINT ["rerankd"]
CMD ["serve"]
