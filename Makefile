# resty.ipconfig: everything that is done to this checkout.
#
# cargo decides what is out of date; make only names what to do.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

PREFIX  ?= /usr/local
DESTDIR ?=

.PHONY: help
help: ## Shows this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

.PHONY: setup
setup: ## Installs the Debian packages that are missing; starts no service.
	@.ci/setup

.PHONY: build
build: setup ## Builds the library and the programs into target/release.
	@cargo build --release --locked --lib --bins

.PHONY: demo
demo: build ## Shows the main job on real parts, by itself; DEMO_SECONDS=n sets its length.
	@cargo build --release --locked --example demo --example demo_service
	@target/release/examples/demo

.PHONY: up
up: build ## As demo, but keeps running and prints where to look; Ctrl-C ends it.
	@cargo build --release --locked --example demo --example demo_service
	@target/release/examples/demo --stay

.PHONY: lint
lint: setup ## Checks format and style: rustfmt, clippy, rustdoc, luacheck.
	@cargo fmt --check
	@cargo clippy --locked --all-targets --quiet -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib --quiet
	@luacheck --quiet lua benches

.PHONY: test
test: lint build ## Passes every test: lint, Rust, Test::Nginx on real parts, faults, a short demo.
	@cargo build --release --locked --example chaos --example demo --example demo_service
	@cargo test --locked
	@cargo test --release --locked --test fuzz -- --show-output
	@$(MAKE) --no-print-directory interleavings
	@prove -r t/
	@target/release/examples/chaos --short --seed 1 --rate 150
	@DEMO_SECONDS=12 target/release/examples/demo

.PHONY: chaos
chaos: build ## Breaks every part under load and says what it cost; CHAOS_SECONDS=n, CHAOS_SEED=n.
	@cargo build --release --locked --example chaos --example demo_service
	@target/release/examples/chaos

.PHONY: soak
soak: build ## Lets instances come and go, and says what every process grows by; SOAK_SECONDS=n.
	@cargo build --release --locked --example chaos --example demo_service
	@target/release/examples/chaos soak

.PHONY: fuzz
fuzz: ## Fuzzes with libFuzzer, FUZZ_RUNS=n inputs for each target (needs cargo-fuzz, a C++ compiler).
	@export RUSTC_BOOTSTRAP=1; cargo fuzz build; \
	for target in $$(cargo fuzz list); do \
	    dictionary=fuzz/dictionaries/$$target.dict; \
	    cargo fuzz run "$$target" -- -runs=$(or $(FUZZ_RUNS),1000000) -max_len=4096 -timeout=10 \
	        -print_final_stats=1 $$(test -e "$$dictionary" && echo "-dict=$$dictionary"); \
	done

.PHONY: interleavings
interleavings: ## Has loom try the board in every order of steps; LOOM_MAX_PREEMPTIONS=n tries more.
	@test=$$(cargo rustc --locked --quiet --test interleavings --message-format json -- --cfg loom | \
	    sed -n 's/.*"name":"interleavings".*"executable":"\([^"]*\)".*/\1/p'); "$$test"

# Each begins nginx anew; what kills processes at exact moments is too slow there.
MEMCHECK ?= t/010-strategies.t t/030-retry.t t/050-reload.t t/130-shdict.t

.PHONY: memcheck
memcheck: build ## Runs nginx under valgrind through traffic, reloads and faults; MEMCHECK=files.
	@.ci/setup memcheck
	@.ci/memcheck $(MEMCHECK)

.PHONY: bench
bench: ## Prints the performance tables, ours beside the peers'; BENCH_SECONDS=n, BENCH_LONG=1.
	@.ci/setup bench
	@cargo build --release --locked --lib --bins --examples
	@cargo bench --locked --bench gateway
	@cargo bench --locked --bench status
	@cargo bench --locked --bench peers
	@target/release/ipconfigctl simulate examples/simulate/13-two-speeds.json --seed 1

.PHONY: deny
deny: ## Checks licences, advisories and sources of the dependencies (needs cargo-deny).
	@cargo deny --locked check

.PHONY: install
install: build ## Installs into PREFIX (/usr/local): the library, Lua, nginx includes, programs.
	@install -d '$(DESTDIR)$(PREFIX)/bin' \
	    '$(DESTDIR)$(PREFIX)/lib/lua/5.1' \
	    '$(DESTDIR)$(PREFIX)/share/lua/5.1/resty/ipconfig' \
	    '$(DESTDIR)$(PREFIX)/share/ipconfig/nginx'
	@install -s -m 755 target/release/ipconfig-exporter target/release/ipconfigctl '$(DESTDIR)$(PREFIX)/bin'
	@install -s -m 755 target/release/libipconfig.so '$(DESTDIR)$(PREFIX)/lib/lua/5.1'
	@install -m 644 lua/resty/ipconfig.lua '$(DESTDIR)$(PREFIX)/share/lua/5.1/resty'
	@install -m 644 lua/resty/ipconfig/*.lua '$(DESTDIR)$(PREFIX)/share/lua/5.1/resty/ipconfig'
	@install -m 644 nginx/*.conf nginx/*.json '$(DESTDIR)$(PREFIX)/share/ipconfig/nginx'
