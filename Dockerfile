# A static program in an image of its own: no shell, no libraries, nothing else.
#
#   docker build -t kube-tun-proxy:0.1.0 .
#
# With a program that was built elsewhere, as the first stage builds it, in DIR:
#
#   docker build -t kube-tun-proxy:0.1.0 --build-context build=DIR .
#
# (BuildKit: docker buildx, podman and nerdctl know the option as well.)

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# glibc is linked in, names being looked up by its own "files" and "dns", which since
# 2.34 need no library at run time. Naming the target keeps the flags from the programs
# that only the build runs.
RUN target="$(rustc --print host-tuple)" \
    && RUSTFLAGS="-C target-feature=+crt-static" \
       cargo build --profile dist --locked --bin kube-tun-proxy --target "$target" \
    && cp "target/$target/dist/kube-tun-proxy" /kube-tun-proxy

# No bundle of certificates: a pod gets its cluster's with its service account, a
# kubeconfig names its own. One that relies on public authorities needs the node's, mounted
# at /etc/ssl/certs. Nothing is written but the admin socket, below /run/kube-tun-proxy.
FROM scratch
COPY --from=build /kube-tun-proxy /usr/local/bin/kube-tun-proxy
ENV PATH=/usr/local/bin
# The user for whom `init` makes the device (config/deploy/base). One of its own: whoever
# else runs as that user in the node's network namespace may attach to the device.
USER 10256:10256
ENTRYPOINT ["/usr/local/bin/kube-tun-proxy"]
