# What one does with this repository. Needs Rust, a C compiler and Node.js >= 20; the rest is brought as needed.

CARGO  ?= cargo
FLAGS  := --locked
export RUSTDOCFLAGS += -D warnings
# The tests mostly wait, so there are more of them at a time than cores.
export RUST_TEST_THREADS ?= 3

.PHONY: help demo lottery experiment test soak bench prove-alerts dashboard-preview fmt build
.DEFAULT_GOAL := help

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: needed ## Sell lottery tickets through the relay and kill it half-way; KEEP=1 stays up, ARGS=--help tells more
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	$(CARGO) build $(FLAGS) --release --bin outbox-relay --example lottery
	@$(CARGO) run $(FLAGS) --quiet --release --example lottery -- $(ARGS)

lottery: needed ## The example application with a page at 127.0.0.1:8080; ARGS='--purchases 1000' sells, draws, pays and audits
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	$(CARGO) build $(FLAGS) --release --bin outbox-relay --example lottery
	@$(CARGO) run $(FLAGS) --quiet --release --example lottery -- serve $(ARGS)

experiment: needed ## Before and after: publishing without an outbox against outbox-relay, under the same load and faults (20 min)
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	$(CARGO) build $(FLAGS) --release --bin outbox-relay --example lottery
	@$(CARGO) run $(FLAGS) --quiet --release --example lottery -- experiment $(ARGS)

# What delivers, once more with every relay behind PgBouncer. The other modules are about sessions themselves (failover,
# restarts, silence, exhaustion, scale), about roles that PgBouncer does not know, or about no delivery;
# the one that is left out of reading has a cluster of its own.
DELIVERIES := $(addsuffix ::,delivery bodies requests order failures outages sharing reading signals retention metrics pgbouncer) \
	--skip a_relay_walks_no_dead_rows_over_and_over

# With PG=13 to PG=18 only what depends on the version.
test: needed ## All checks and tests; PG=13 (to 18) runs the integration tests on that PostgreSQL
ifdef PG
	$(CARGO) build $(FLAGS) --examples
	PG_MAJOR=$(PG) $(CARGO) test $(FLAGS) --test it
else
	@sh tests/tools/debian.sh
	$(CARGO) fmt --check
	$(CARGO) clippy $(FLAGS) --all-targets -- -D warnings
	$(CARGO) clippy $(FLAGS) --test soak --test prove-alerts --benches -- -D warnings
	$(CARGO) doc $(FLAGS) --no-deps --document-private-items
	$(CARGO) build $(FLAGS) --examples # An example with tests of its own is built by `cargo test` as those only.
	$(CARGO) test $(FLAGS)
	$(CARGO) bench $(FLAGS) --bench instructions
	THROUGH_PGBOUNCER=1 $(CARGO) test $(FLAGS) --test it -- $(DELIVERIES)
endif

soak: needed ## Break everything at random for MINUTES=5 and count what arrives; SEED=n repeats what was drawn
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	$(CARGO) test $(FLAGS) --release --test soak

bench: needed ## Measure everything and write docs/benchmarks; CASE=drain one case, SCALE=0.1 a quick look that writes nothing
	@sh tests/tools/postgres.sh >/dev/null
	$(CARGO) bench $(FLAGS) --bench outbox

prove-alerts: needed ## Make every alert fire by a real fault, before a real Prometheus; MINUTE=3 seconds stand for one of the rules
	@sh tests/tools/debian.sh
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	$(CARGO) test $(FLAGS) --test prove-alerts

dashboard-preview: needed ## Draw the dashboard's panels from a real Prometheus into docs/dashboard.png, without Grafana
	@sh tests/tools/debian.sh
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	DASHBOARD_PAGE=$(CURDIR)/target/dashboard.html $(CARGO) test $(FLAGS) --test it -- --nocapture dashboard::every_expression
	@sh tests/tools/dashboard/photograph.sh target/dashboard.html docs/dashboard.png

fmt: needed ## Format the sources
	$(CARGO) fmt

build: needed ## The relay, as released: target/release/outbox-relay
	$(CARGO) build $(FLAGS) --release --bin outbox-relay

# The first thing missing is named with its remedy, before anything is built.
.PHONY: needed
needed:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust >= 1.94.1, for example by https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "cc is missing: install a C compiler, for example by: apt-get install build-essential" >&2; exit 1; }
