# syntax=docker/dockerfile:1
# The operator, and nothing else: no shell, no root.
FROM rust:1-bookworm AS build
WORKDIR /src
# Not rust-toolchain.toml: the image's own toolchain is the one to use.
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY agent/src agent/src
# Cargo wants what the manifests name, though none of these is built.
COPY benches benches
COPY e2e e2e
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package tokenbudget --bin tokenbudget \
    && install -D target/release/tokenbudget /out/tokenbudget

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="tokenbudget" \
      org.opencontainers.image.description="Shares one provider quota across all LiteLLM replicas" \
      org.opencontainers.image.source="https://github.com/tokenbudget/tokenbudget" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/tokenbudget /usr/local/bin/tokenbudget
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/tokenbudget"]
CMD ["run"]
