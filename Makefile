# Everything is one command; the build itself is CMake's (see CMakePresets.json).
#   make build   set-up, and the command at build/release/bin/weir
#   make test    set-up, and all tests but the long ones
#   make demo    set-up, build, and the main job shown
#   make soak    the file exerciser for an hour (WEIR_SOAK_SECONDS): simulated, live and the host's own files
JOBS ?= 2
RUN_TESTS := python3 scripts/run_tests.py --jobs $(JOBS)

.DEFAULT_GOAL := build
.PHONY: build setup test test-long soak conformance asan tsan demo bench lint lint-changed format clean

setup:
	@bash scripts/setup.sh

# Only once; after that the generated build looks after itself.
build/%/build.ninja: CMakePresets.json | setup
	cmake --preset $*
	@touch $@

build: setup build/release/build.ninja
	cmake --build build/release -j$(JOBS) --target product

# Units, flows and the model run with lockdep and verify on; what is live runs as it is shipped. A test that does not build is a
# test that failed: the others run, and all are counted.
test: setup build/debug/build.ninja build/release/build.ninja
	-cmake --build build/debug -j$(JOBS) --target tests_unit tests_flows tests_model -- -k 0
	-cmake --build build/release -j$(JOBS) --target product tests_live -- -k 0
	$(RUN_TESTS) --python build/debug=unit,flows,model build/release=live

# The same with WEIR_LONG=1 (all seeds, all repetitions), in the release build as well.
test-long: setup build/debug/build.ninja build/release/build.ninja
	-cmake --build build/debug -j$(JOBS) --target tests_unit tests_flows tests_model -- -k 0
	-cmake --build build/release -j$(JOBS) --target product tests_all -- -k 0
	WEIR_LONG=1 $(RUN_TESTS) --time-limit 7200 --python build/debug=unit,flows,model build/release=unit,flows,model,live

# Seven kinds of runs share the time; each says once a minute how far it is.
soak: WEIR_SOAK_SECONDS ?= 3600
soak: setup build/release/build.ninja
	cmake --build build/release -j$(JOBS) --target test_fsx test_live_fsx
	WEIR_SOAK_SECONDS=$$(($(WEIR_SOAK_SECONDS) / 7)) build/release/tests/model/test_fsx
	WEIR_SOAK_SECONDS=$$(($(WEIR_SOAK_SECONDS) / 7)) build/release/tests/live/test_live_fsx

# Each held flow against the documents, with the steps that its run shows; a fault that flows and invariants must notice, and one
# for each invariant.
conformance: setup build/debug/build.ninja
	cmake --build build/debug -j$(JOBS) --target tests_flows test_verify
	$(RUN_TESTS) --show conformance --show planted build/debug=flows
	@build/debug/tests/unit/test_verify --gtest_filter='Verify.EveryInvariant*' | grep ^invariants

asan tsan: %: setup build/%/build.ninja
	cmake --build build/$@ -j$(JOBS) --target tests_unit tests_flows tests_model
	$(RUN_TESTS) --time-limit 1800 build/$@=unit,flows,model

demo: build
	bash scripts/demo.sh

bench: setup build/release/build.ninja
	cmake --build build/release -j$(JOBS) --target product bench
	bash scripts/bench.sh build/release

lint lint-changed: build/debug/build.ninja
	@bash scripts/setup.sh lint
	bash scripts/lint.sh $(if $(filter lint-changed,$@),--changed) $(FILES)

format:
	@bash scripts/setup.sh lint
	git ls-files '*.cpp' '*.hpp' '*.h' '*.c' | xargs -r clang-format -i

clean:
	rm -rf build
