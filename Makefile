# Two commands for a fresh machine, each of which sets up what is missing:
#   make run    builds ironwarp and lets it write text
#   make test   runs the tests
# MODEL names a GGUF file (none: the model in the box), PROMPT what the text begins with.

SHELL := bash
export MODEL ?=
export PROMPT ?= Once upon a time

.PHONY: run test

run:
	. ./scripts/setup.sh && cargo build --release -p ironwarp
	./target/release/ironwarp generate $${MODEL:+"$$MODEL"} --prompt "$$PROMPT"

test:
	. ./scripts/setup.sh tests && cargo test --doc --quiet && cargo nextest run --no-fail-fast
