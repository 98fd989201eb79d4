# Sourced by the Makefile and .ci/run, with bash, in the repository's root. Installs what the build
# needs and the machine lacks; with the argument `tests`, what the tests need too. Does nothing
# where nothing is missing.

say() { echo "setup: $*" >&2; }

# Debian's packages: as root, or through sudo.
debian_install() {
    command -v apt-get >/dev/null || return 1
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return 1
        as_root=sudo
    fi
    say "installing $*"
    $as_root apt-get update -qq >&2 &&
        $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Whether rustup may download: RUSTUP_AUTO_INSTALL=0 says that it may not.
rustup_online() {
    command -v rustup >/dev/null && [ "${RUSTUP_AUTO_INSTALL:-1}" != 0 ]
}

# Whether the compiler $1 is 1.95 or newer and has the source of `core` beside it (build/compiler.rs
# asks the same).
compiles_kernels() {
    sysroot=$("$1" --print sysroot 2>/dev/null) || return 1
    [ -f "$sysroot/lib/rustlib/src/rust/library/core/src/lib.rs" ] || return 1
    new_enough "$("$1" -V)"
}

# Whether what `rustc -V` wrote names 1.95 or newer.
new_enough() {
    version=$(cut -d' ' -f2 <<<"$1")
    [ -n "$version" ] && [ "$(printf '%s\n' 1.95.0 "$version" | sort -V | head -n 1)" = 1.95.0 ]
}

# The host's compiler: the one that rust-toolchain.toml names, or where it can't be had, another
# that is new enough.
host_compiler() {
    cargo --version >/dev/null 2>&1 && return
    if rustup_online; then
        say "installing the Rust toolchain of rust-toolchain.toml"
        rustup toolchain install >&2 && return
    fi
    for toolchain in $(rustup toolchain list -q 2>/dev/null); do
        if new_enough "$(RUSTUP_TOOLCHAIN=$toolchain rustc -V 2>/dev/null)"; then
            say "using the toolchain $toolchain"
            export RUSTUP_TOOLCHAIN="$toolchain"
            return
        fi
    done
    if new_enough "$(/usr/bin/rustc -V 2>/dev/null)" ||
        debian_install rustc-web cargo-web rust-web-src; then
        # Before rustup's, which would look for its own.
        export PATH="/usr/bin:$PATH"
        new_enough "$(rustc -V 2>/dev/null)" && cargo --version >/dev/null 2>&1 && return
    fi
    say "no Rust toolchain of 1.95 or newer: install rustup, and run this again"
    return 1
}

# The kernels' compiler: the host's own with its library source, or Debian's.
kernel_compiler() {
    for rustc in ${IRONWARP_NVPTX_RUSTC:-rustc /usr/bin/rustc}; do
        compiles_kernels "$rustc" && return
    done
    if rustup_online; then
        say "installing the source of Rust's library"
        rustup component add rust-src >&2 && return
    fi
    debian_install rustc-web rust-web-src && compiles_kernels /usr/bin/rustc && return
    say "no compiler for the kernels; the build will say what can be done"
}

# NVIDIA's assembler, with which the build checks the kernels where it finds one (build/ptxas.rs).
assembler() {
    [ -n "${PTXAS:-}" ] && return
    command -v ptxas >/dev/null && return
    command -v python3 >/dev/null || return 0
    places='/usr/local/cuda/bin/ptxas .tools/nvidia/*/bin/ptxas'
    python_places=$(python3 -c 'import nvidia
print(*(path + "/*/bin/ptxas" for path in nvidia.__path__))' 2>/dev/null)
    for place in $places $python_places; do
        [ -x "$place" ] && return
    done
    say "installing ptxas, from the Python package nvidia-cuda-nvcc"
    python3 -m pip install -q --no-deps --target .tools nvidia-cuda-nvcc >&2 ||
        say "no ptxas: the kernels' registers stay unchecked"
}

test_runner() {
    cargo nextest --version >/dev/null 2>&1 && return
    say "installing cargo-nextest (some minutes)"
    cargo install --locked cargo-nextest >&2
}

command -v cc >/dev/null || debian_install gcc libc6-dev || say "no C linker (cc)"
host_compiler && kernel_compiler &&
    if [ "${1:-}" = tests ]; then assembler; test_runner; fi
