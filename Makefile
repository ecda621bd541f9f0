# The tasks of this repository. It needs Rust, a C compiler, patch and Node.js >= 20, and some tests Python, a JDK and Maven
# (CONTRIBUTING.md); the rest is installed as needed.

CARGO  ?= cargo
FLAGS  := --locked
export RUSTDOCFLAGS += -D warnings
# Tests mostly wait, so more of them run at a time than there are cores.
export RUST_TEST_THREADS ?= 3

.PHONY: help demo lottery experiment test test-elasticmq test-moto soak mutants bench prove-alerts dashboard-preview status-page-preview deploy-check \
	image-check packages package-check fmt build
.DEFAULT_GOAL := help

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

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

# The delivery tests again, with every relay behind PgBouncer. The other modules are about sessions themselves
# (failover, restarts, silence, exhaustion, scale), about roles that PgBouncer does not know, or not about delivery; the
# skipped test of reading has its own cluster.
DELIVERIES := $(addsuffix ::,delivery bodies requests order failures outages sharing reading signals retention metrics pgbouncer) \
	--skip a_relay_walks_no_dead_rows_over_and_over

# What depends on neither PostgreSQL's version nor the name of the schema: settings, ways to AWS, documents, alerts, the looks
# of pages, the example.
UNRELATED := $(addprefix --skip ,$(addsuffix ::,alerts architecture check_way collector configuration credential_kinds credentials dashboard \
	destination_roles dev documents emulators example_consumers generate latency lottery metrics_page mistakes object_mappers proxies rds_iam status_page_looks traces))

# Tests that name schemas themselves, so they are the same whatever SCHEMA is.
OWN_SCHEMAS := --skip schemas::

# With PG=13 to PG=18 or SCHEMA=name, only tests that may depend on that. In another schema the relays are told its name, and
# the sessions of tests rewrite their SQL for it (tests/support/src/rewriting.rs).
test: needed ## All checks and tests; PG=13 (to 18) or SCHEMA=name: the integration tests on that PostgreSQL, in that schema
ifneq ($(PG)$(SCHEMA),)
	$(CARGO) build $(FLAGS) --examples
	PG_MAJOR=$(PG) TEST_SCHEMA=$(SCHEMA) $(CARGO) test $(FLAGS) --test it -- $(UNRELATED) $(if $(SCHEMA),$(OWN_SCHEMAS))
else
	@sh tests/tools/debian.sh
	sh tests/tools/mutants.sh --check
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(FLAGS) --workspace --all-targets -- -D warnings
	$(CARGO) clippy $(FLAGS) --test soak --test prove-alerts --benches -- -D warnings
	$(CARGO) clippy $(FLAGS) --features dev --lib --bins --test dev -- -D warnings
	$(CARGO) doc $(FLAGS) --features dev --workspace --no-deps --document-private-items
	$(CARGO) build $(FLAGS) --examples # An example with tests of its own is built by `cargo test` as those only.
	$(CARGO) test $(FLAGS) --workspace
	$(CARGO) test $(FLAGS) --features dev --lib -- dev::
	$(CARGO) test $(FLAGS) --features dev --test dev # It leaves a relay with that feature; the next line that builds makes the usual one.
	$(CARGO) bench $(FLAGS) --bench instructions
	THROUGH_PGBOUNCER=1 $(CARGO) test $(FLAGS) --test it -- $(DELIVERIES)
endif

# What depends on how SQS answers, on other emulators (docs/emulators.md); `bodies::` is also in `text_bodies::`.
EMULATED := $(addsuffix ::,delivery bodies requests order failures emulators)

# Left out with moto, which takes a hundred messages a second or fewer: tests of 300 to 3000 messages, and tests that need a
# hundred others a second to get through while one fails.
TOO_MANY_FOR_MOTO := $(addprefix --skip ,one_event_reaches_every_destination_it_is_for are_filled_to_ten \
	messages_of_a_group_arrive_in_the_order_of_their_ids connections_cut_after_sending_leave_each_message_once_in_a_fifo_queue \
	a_failing_message_holds_up_its_group_and_nobody_else \
	a_message_that_keeps_failing_is_dead_with_its_reason attempts_are_counted_over_restarts \
	whatever_text_the_table_accepts_the_relay_sends_and_sqs_takes_and_they_refuse_the_same)

# Left out with moto, whose sequence numbers are random, so that messages of FIFO queues get copies (docs/emulators.md).
NUMBERED := $(addprefix --skip ,unreadable_answers_lose_nothing a_group_keeps_its_order_when the_first_messages_of_an_outbox_keep \
	a_late_commit_behind_a_deferred_message_goes strict_mode_never_sends_two_entries batched_mode_sends_up_to_ten \
	all_kinds_of_bodies_keep_the_order_of_a_group_that_is_longer_than_a_read \
	bytes_arrive_in_base64_without_line_breaks_and_decode_to_the_same \
	other_bodies_are_scheduled_retried_redriven_and_replayed_as_they_were_written)

test-elasticmq: needed ## The tests of delivery, bodies, requests, order and failures on ElasticMQ; needs Java and Maven
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/elasticmq.sh >/dev/null
	SQS_EMULATOR=elasticmq $(CARGO) test $(FLAGS) --test it -- $(EMULATED)

test-moto: needed ## The same on moto's server, but for some tests; needs Python
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/moto.sh >/dev/null
	SQS_EMULATOR=moto $(CARGO) test $(FLAGS) --test it -- $(EMULATED) $(TOO_MANY_FOR_MOTO) $(NUMBERED)

soak: needed ## Break everything at random for MINUTES=5 and count what arrives; SEED=n repeats what was drawn
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	$(CARGO) test $(FLAGS) --release --test soak

mutants: needed ## Put known faults into the core, one at a time: the property tests must find each within a minute (30 min)
	@sh tests/tools/mutants.sh $(ARGS)

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
	@sh tests/tools/dashboard/photograph.sh target/dashboard.html docs/dashboard-top.png 575

status-page-preview: needed ## Photograph the status page of a real relay after MINUTES=13 of traffic: docs/status-page*.png
	@sh tests/tools/postgres.sh >/dev/null
	@sh tests/tools/emulator.sh >/dev/null
	STATUS_PAGE_PICTURES=$(CURDIR)/docs STATUS_PAGE_MINUTES=$(or $(MINUTES),13) \
		$(CARGO) test $(FLAGS) --test it -- --nocapture status_page_looks::the_page_can_be_photographed

deploy-check: ## Check deploy/ and .github/ with the programs that know their formats: needs Go and Python; ARGS=helm some
	@sh tests/tools/deploy-check.sh $(ARGS)

image-check: needed ## Build the container image without Docker, and run it as the sidecar: locked in, with TLS, within its memory
	@sh tests/tools/image-check.sh

packages: build ## A .deb and an .rpm of the relay, with checksums: target/packages
	@sh tests/tools/packages.sh

package-check: build ## Install, upgrade and remove the packages in fresh roots; the list of crates, the crate, the program for arm64
	@sh tests/tools/package-check.sh

fmt: needed ## Format the sources
	$(CARGO) fmt --all

build: needed ## The relay, as released: target/release/outbox-relay
	$(CARGO) build $(FLAGS) --release --bin outbox-relay

# The first missing tool is reported with its remedy, before anything is built.
.PHONY: needed
needed:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust >= 1.94.1, for example by https://rustup.rs" >&2; exit 1; }
	@command -v patch >/dev/null || { echo "patch is missing: install it, for example by: apt-get install patch" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "cc is missing: install a C compiler, for example by: apt-get install build-essential" >&2; exit 1; }
