ARG PYTHON=3.13
FROM python:${PYTHON}-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Dependencies first: they change less often than the code.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv --without-pip /opt/esms-exporter \
    && pip --python /opt/esms-exporter install --only-binary=:all: --require-hashes \
        -r requirements.lock \
    && pip install --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY exporter/ exporter/
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/esms-exporter install --no-deps --no-index dist/*.whl \
    && python -m compileall -q /opt/esms-exporter

FROM python:${PYTHON}-slim
# pip and the lists of the package manager are not needed to run. OpenShift uses any user of group 0.
RUN pip uninstall --yes --quiet --root-user-action=ignore pip \
    && install -d -o 65534 -g 0 -m 0770 /data
COPY --from=build /opt/esms-exporter /opt/esms-exporter
ENV PATH=/opt/esms-exporter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The default ledger, `esms-exporter.db`, is relative to the working directory.
WORKDIR /data
VOLUME /data
USER 65534:65534
EXPOSE 10375
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["esms-exporter", "health"]
ENTRYPOINT ["esms-exporter"]
CMD ["--config.file=/etc/esms-exporter/config.yaml"]
