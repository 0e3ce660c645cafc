# One set of packages, started in three ways: the server, a worker, a worker with a GPU. `docker compose up` builds them.
#
# PIP_EXTRA_INDEX_URL decides which build of PyTorch pip finds: empty, the default one (on x86-64 with CUDA, several GB).

FROM python:3.11-slim AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends libseccomp2 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /usr/sbin/nologin cipm \
 && install -d -o cipm -g cipm -m 700 /data /objects
WORKDIR /opt/cipm
ARG PIP_EXTRA_INDEX_URL=""
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > wanted.txt \
 && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r wanted.txt
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps .
ENV CIPM_DATA=/data PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER cipm
WORKDIR /data
VOLUME ["/data"]

FROM base AS api
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/api/health', timeout=8)"]
CMD ["python", "-m", "frontend.serve"]

FROM base AS worker
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["python", "-m", "workers.health"]
CMD ["python", "-m", "workers"]

FROM worker AS worker-gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
