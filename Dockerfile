# gscfd on the CPU:
#   docker build -t gscfd .
#   docker run --rm -v "$PWD/outputs:/gscfd/outputs" gscfd train "a yellow duck"
# The studio's page answers on this machine alone, so its container shares the network:
#   docker run --rm --network host -v "$PWD/outputs:/gscfd/outputs" gscfd studio
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /gscfd
COPY . .
RUN python3 -m venv .venv && .venv/bin/pip install -e .
ENTRYPOINT [".venv/bin/gscfd"]
CMD ["--help"]
