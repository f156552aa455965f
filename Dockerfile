# Images of broker and operator, for a registry of your own:
#   docker build --target broker --tag …/millrace-broker:… .
#   docker build --target operator --tag …/millrace-operator:… .
# `make images` builds the same without Docker; what is inside is listed once, in scripts/images/rootfs.py.

FROM rust:1.95-bookworm AS build
# libclang: bindgen reads RocksDB's header with it.
RUN apt-get update && apt-get install --yes --no-install-recommends libclang-dev python3 ca-certificates && rm -rf /var/lib/apt/lists/*
WORKDIR /millrace
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/millrace/target \
    cargo build --locked --release -p millrace-broker -p millrace-operator && \
    for name in broker operator; do \
      mkdir -p /images/$name && \
      scripts/images/rootfs.py target/release/millrace-$name /images/$name || exit 1; \
    done

FROM scratch AS broker
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title=millrace-broker \
      org.opencontainers.image.description="The Kafka-compatible broker" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /images/broker /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/millrace-broker"]

FROM scratch AS operator
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title=millrace-operator \
      org.opencontainers.image.description="Reconciles KafkaCluster and Topic" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /images/operator /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/millrace-operator"]
