# Every target works in a fresh clone: what it needs is installed into .venv first, pinned by constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -P -m
PROGRADE := $(RUN) prograde.accelerated.command_line
PYTEST := $(RUN) pytest -n auto --dist worksteal --pyargs
SUITE := prograde.equivalence_tests
NAMESPACE := $(addprefix .namespace/prograde/,reference accelerated equivalence_tests)

export PYTHONPATH := $(CURDIR)/.namespace
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # two installations into one environment would disturb each other

.PHONY: help train test smoke fresh faults examples nightly check benchmark results gpu clean

# Arrays as small as those of tests and digits: threads would only wait for one another.
train test smoke fresh faults examples nightly: export OMP_NUM_THREADS := 1

# make SEED=5 fresh draws the examples of that seed again.
SEED := $(shell od -An -N3 -tu4 /dev/urandom)

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

train: .venv/train-installed $(NAMESPACE) ## train every rule on a small set of digits: accuracies, a picture in runs/digits
	@echo "Training every rule on the digits, results in runs/digits"
	@$(PROGRADE) compare --data digits --output runs/digits --overwrite

test: .venv/test-installed $(NAMESPACE) ## the tests, in all precisions: under five minutes on two cores
	@echo "Running the tests, the quickest in all precisions"
	@$(PYTEST) tests $(SUITE) --ignore=tests/test_examples.py --ignore=tests/test_readme.py --also float32 --also bfloat16

smoke: .venv/test-installed $(NAMESPACE) ## the quickest tests, under a minute
	@$(PYTEST) $(SUITE) -m smoke --profile smoke

fresh: .venv/test-installed $(NAMESPACE) ## the quickest tests with new random examples; SEED=... draws those again
	@echo "make SEED=$(strip $(SEED)) fresh draws these examples again"
	@$(PYTEST) $(SUITE) -m smoke --profile smoke --hypothesis-seed $(SEED)

faults: .venv/test-installed $(NAMESPACE) ## the planted faults, which the tests must catch: under four minutes
	@$(RUN) $(SUITE).faults

examples: .venv/test-installed $(NAMESPACE) ## the examples and the blocks of README.md, run as they stand
	@$(PYTEST) tests/test_examples.py tests/test_readme.py

nightly: .venv/test-installed $(NAMESPACE) ## 300 random examples per property, 100,000 damaged files a format, 50 kills, 1,000 mutants and the longest tests: hours
	@echo "make SEED=$(strip $(SEED)) nightly draws these examples again"
	@$(PYTEST) $(SUITE) tests --profile nightly --hypothesis-seed $(SEED) --mutations 100000 --mutation-seed $(SEED) --kills 50
	@mkdir -p runs
	@$(RUN) $(SUITE).soundness runs/soundness-$(strip $(SEED)).jsonl --seed $(strip $(SEED))
	@$(RUN) $(SUITE).mutation --seed $(strip $(SEED))

check: .venv/test-installed $(NAMESPACE) ## style and types
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy

benchmark: .venv/train-installed $(NAMESPACE) ## time of every rule's step beside backpropagation's
	@$(PROGRADE) benchmark

results: .venv/train-installed $(NAMESPACE) ## every table and picture of the pages, from the stored runs: half a minute
	@$(BIN)/python examples/experiments/pages.py

DEVICE := cuda
OUT := runs/gpu

gpu: $(NAMESPACE) ## on a GPU, with what PYTHON has: uses, steps, epochs on DATA=cifar10, tests, into OUT=runs/gpu
	@$(PYTHON) -P -m $(SUITE).gpu $(OUT) $(DEVICE) $(PART)

clean: ## remove what make made, but for runs/
	@rm -rf .venv .namespace build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/train-installed: EXTRAS := train
.venv/test-installed: EXTRAS := train,test,dev
.venv/train-installed .venv/test-installed: pyproject.toml constraints.txt
	@$(RUN) pip --version >/dev/null 2>&1 || { echo "Creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing prograde[$(EXTRAS)] into .venv"
	@$(RUN) pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@ .venv/train-installed

$(NAMESPACE):
	@mkdir -p $(@D)
	@ln -sfn ../../$(@F) $@
