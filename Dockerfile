# First stage: an environment with Tertulia and all it needs; what a build leaves behind stays here.
FROM python:3.13-slim AS build
RUN python -m venv /opt/tertulia
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY chat chat
COPY templates templates
RUN /opt/tertulia/bin/pip install --no-cache-dir --disable-pip-version-check '.[fast]'
COPY hypercorn.toml ./
# Who comes to a container comes from outside of it. In the file, so that `check` sees it, too.
RUN sed -i 's/127\.0\.0\.1:8000/0.0.0.0:8000/' hypercorn.toml

# Second stage: what runs. Settings come as CHAT_… variables; none is in the image.
FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /srv/tertulia --create-home tertulia \
    && install -d -o tertulia -g tertulia -m 0700 /srv/tertulia/var
COPY --from=build /opt/tertulia /opt/tertulia
ENV PATH=/opt/tertulia/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/tertulia
COPY --from=build /src/hypercorn.toml ./
# By its number: orchestrators that demand another than root cannot look a name up.
USER 10001
# The SQLite file and the secret key, where neither PostgreSQL nor CHAT_SECRET_KEY is given. It is
# the one place that is written to: the rest may be mounted read-only.
VOLUME /srv/tertulia/var
EXPOSE 8000
# The check itself takes ten seconds at most.
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s --start-interval=2s \
    CMD ["python", "-m", "chat", "healthcheck"]
# Without a shell in between, so that SIGTERM arrives and the rooms are drained.
CMD ["python", "-m", "chat", "serve"]
