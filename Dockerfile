# Two ways to one image: from source in a builder (docker build .), or around the binary of `make build` without any
# registry (make image, the target `scratch`). Both stand on `base`, which is empty but for what the daemon needs.

ARG BUILDER=docker.io/library/golang:1.26-bookworm

FROM scratch AS base
# The state's directory, owned by the user below: a directory cannot be made without a shell, but copied into.
COPY --chown=65532:65532 configs/kwaaid.yaml /data/kwaaid.yaml
ENV KWAAI_DATA=/data
USER 65532:65532
VOLUME /data
# The swarm over TCP and QUIC, HTTP, gRPC. The last two listen on the container's loopback until they are told otherwise.
EXPOSE 7577/tcp 7577/udp 7575/tcp 7576/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["/kwaaid", "healthcheck"]
ENTRYPOINT ["/kwaaid"]
CMD ["run"]

FROM base AS scratch
COPY bin/kwaaid /kwaaid

FROM ${BUILDER} AS builder
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build

FROM base
COPY --from=builder /src/bin/kwaaid /kwaaid
