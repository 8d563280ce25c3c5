# Every target works in a fresh clone: what it needs is installed into .venv first, pinned by constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -P -m
PROGRADE := $(RUN) prograde.accelerated.command_line
PYTEST := $(RUN) pytest --pyargs
SUITE := prograde.equivalence_tests
NAMESPACE := $(addprefix .namespace/prograde/,reference accelerated equivalence_tests)

export PYTHONPATH := $(CURDIR)/.namespace
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # two installations into one environment would disturb each other

.PHONY: help train test smoke check faults benchmark clean

# Arrays as small as those of tests and digits: threads would only wait for one another.
train test smoke faults: export OMP_NUM_THREADS := 1

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

train: .venv/train-installed $(NAMESPACE) ## train every rule on a small set of digits: accuracies, a picture in runs/digits
	@echo "Training every rule on the digits, results in runs/digits"
	@$(PROGRADE) compare --data digits --output runs/digits --overwrite

test: .venv/test-installed $(NAMESPACE) ## all tests, then the planted faults that they must catch
	@echo "Running the tests"
	@$(PYTEST) $(SUITE) tests
	@echo "Running the quickest once more, in lower precisions"
	@$(PYTEST) $(SUITE) -m smoke --profile smoke --dtype float32
	@$(PYTEST) $(SUITE) -m smoke --profile smoke --dtype bfloat16
	@echo "Spoiling every result that is compared: each comparison must notice"
	@$(PYTEST) $(SUITE) --profile smoke --sabotage zeros
	@$(PYTEST) $(SUITE) --profile smoke --sabotage transposed
	@echo "Planting faults, each of which the tests must catch"
	@$(RUN) $(SUITE).faults

smoke: .venv/test-installed $(NAMESPACE) ## the quickest tests, under a minute
	@$(PYTEST) $(SUITE) -m smoke --profile smoke

check: .venv/test-installed $(NAMESPACE) ## style and types
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy

faults: .venv/test-installed $(NAMESPACE) ## the planted faults alone
	@$(RUN) $(SUITE).faults

benchmark: .venv/train-installed $(NAMESPACE) ## time of every rule's step beside backpropagation's
	@$(PROGRADE) benchmark

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
