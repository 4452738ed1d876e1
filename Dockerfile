FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Dependencies first: they change less often than the code.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv --without-pip /opt/esms-exporter \
    && pip --python /opt/esms-exporter install --no-compile --only-binary=:all: --require-hashes \
        -r requirements.lock \
    && pip install --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY tools/description.py tools/
COPY exporter/ exporter/
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/esms-exporter install --no-compile --no-deps --no-index dist/*.whl

# The root of the image: Python, the exporter, the shared libraries that they need, and certificates.
COPY deploy/image.sh ./
RUN sh image.sh /image

FROM scratch
COPY --from=build /image /
ENV PATH=/opt/esms-exporter/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The default ledger, `esms-exporter.db`, is relative to the working directory.
WORKDIR /data
VOLUME /data
USER 65534:65534
EXPOSE 10375
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["esms-exporter", "health"]
ENTRYPOINT ["esms-exporter"]
CMD ["--config.file=/etc/esms-exporter/config.yaml"]
