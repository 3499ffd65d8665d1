# The project's commands. Meson and Ninja build; this file remembers how they are called.
#
#   make demo      install what is missing, build, and see several apps share one resident model
#   make check     install what is missing, build, run every test
#   make           build into build/
#   make bench     measure this machine, half an hour; FULL=1: at full size, many hours
#   make install   install what was built (PREFIX, DESTDIR)
#   make lint      clang-format, clang-tidy, the tree's own rules
#   make sanitize  the tests under ASan and UBSan, and the threaded ones under TSan
#   make fuzz      every fuzz target for FUZZ_SECONDS
BUILD = build
PREFIX = /usr/local
FUZZ_SECONDS = 30
MODEL = models/pocket-q8_0.gguf

# The tests in which threads meet (cli runs the whole daemon; engine and service would take ten minutes more).
THREADED = base attention matmul queue client cli

all: build

build:
	@tools/build $(BUILD)

demo:
	@tools/install-dependencies
	@tools/build $(BUILD)
	@tools/demo $(BUILD) $(MODEL)

check:
	@tools/install-dependencies
	@tools/build $(BUILD) -Dwerror=true
	@tools/check $(BUILD)

bench:
	@tools/install-dependencies bench
	@tools/build $(BUILD)
	@tools/bench $(BUILD) $(MODEL) $(FULL)

install:
	@tools/install-dependencies
	@tools/build $(BUILD) -Dprefix=$(PREFIX)
	@meson install -C $(BUILD) --no-rebuild
	@[ -n "$$DESTDIR" ] || ldconfig || echo "install: ldconfig did not run; libllms.so may not be found yet"

lint:
	@tools/install-dependencies lint
	@tools/build $(BUILD)
	@tools/lint $(BUILD)

sanitize:
	@tools/install-dependencies
	@tools/build build-asan -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
	@tools/check build-asan
	@tools/build build-tsan -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
	@tools/check build-tsan $(THREADED)

fuzz:
	@tools/install-dependencies fuzz
	@CC=clang tools/build build-fuzz -Dbuildtype=debugoptimized -Dfuzz=true -Db_sanitize=address,undefined \
		-Db_lundef=false fuzz
	@tools/fuzz build-fuzz $(FUZZ_SECONDS)

clean:
	rm -rf $(BUILD) build-asan build-tsan build-fuzz

.PHONY: all build demo check bench install lint sanitize fuzz clean
