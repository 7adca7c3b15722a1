# make run | test | test-outside | check | messages | chaos | bench | clean      (README.md says what each is for)
#
#   make run [HOST=127.0.0.1] [PORT=8000] [DATA=.data] [DATABASE_URL=postgresql://...] [DEMO_WEBHOOK=http://...] [DEMO_SMTP=host:port]
#
# HOST, PORT, DATA, PYTHON and VENV count only on make's command line: some shells export a HOST of their own.
# DATABASE_URL, DEMO_WEBHOOK and DEMO_SMTP may come from the environment too.

.DEFAULT_GOAL := help
SHELL := /bin/sh
given = $(if $(filter command,$(origin $1)),$($1),$2)
quoted = '$(subst ','\'',$1)'

override PYTHON := $(call given,PYTHON,python3)
override VENV := $(call given,VENV,.venv)
run_host := $(call given,HOST,127.0.0.1)
run_port := $(call given,PORT,8000)
run_data := $(call given,DATA,.data)
python := $(VENV)/bin/python

need_python = command -v $(call quoted,$(PYTHON)) >/dev/null 2>&1 || { echo "There is no $(PYTHON) here: install Python 3.11, 3.12 or 3.13." >&2; exit 1; }
install = $(need_python); $(call quoted,$(PYTHON)) flashduty/bootstrap.py $(call quoted,$(VENV))
# What tests and checks must not inherit from a shell in which the product is configured.
bare = env -u DJANGO_SETTINGS_MODULE -u BASE_URL -u FLASHDUTY_MODE -u FLASHDUTY_DATA -u FLASHDUTY_RUN_DIR -u MAKEFLAGS -u MAKELEVEL

.PHONY: help run install test test-outside check types messages chaos bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 6

run:
	@$(install)
	@exec $(call quoted,$(python)) -m flashduty.run $(call quoted,$(run_host)) $(call quoted,$(run_port)) $(call quoted,$(run_data))

install:
	@$(install) test check

test:
	@$(install) test
	@$(bare) FLASHDUTY_MODE=test $(call quoted,$(python)) -m pytest -n 2 --dist worksteal -m "not outside and not slow" -q $(PYTEST)

test-outside:
	@$(install) test
	@$(bare) FLASHDUTY_MODE=test $(call quoted,$(python)) -m pytest -m "outside or slow" -q $(PYTEST)

check:
	@$(install) test check
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(bare) $(production) $(python) -m mypy .
	$(VENV)/bin/lint-imports
	$(bare) $(production) $(python) manage.py makemigrations --check --dry-run
	$(bare) $(production) $(python) manage.py check --deploy --fail-level WARNING

# mypy's Django plugin reads the settings, and they want an environment (pre-commit calls this).
types:
	@$(install) test check
	@$(bare) $(production) $(python) -m mypy .

# Settings as an operator has them. The keys are nobody's, and no database is asked: nothing of it is listening.
production = FLASHDUTY_MODE=production BASE_URL=https://oncall.example.com DATABASE_URL=postgresql://flashduty@127.0.0.1:1/flashduty \
	FLASHDUTY_SECRET_KEY=for-make-check-only-0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEFGH \
	FLASHDUTY_ENCRYPTION_KEYS=MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE= FLASHDUTY_LINK_KEYS=for-make-check-only-0123456789-abcdefghij

# Gathers what the product says into the Chinese catalogue and compiles it (needs GNU gettext; a bare machine runs on the compiled file).
# Without dates and line numbers, so that its difference is what was said anew: translate what `msgfmt` counts as fuzzy or untranslated.
catalogue = flashduty/locale/zh_Hans/LC_MESSAGES/django
messages:
	@$(install)
	@command -v msgfmt >/dev/null 2>&1 || { echo "There is no msgfmt here: install GNU gettext." >&2; exit 1; }
	@$(bare) FLASHDUTY_MODE=test $(call quoted,$(python)) manage.py makemessages -l zh_Hans -e html,py --no-wrap --no-obsolete --add-location=file \
	  --ignore=.venv --ignore=.data --ignore=build --ignore=staticfiles --ignore=tests --ignore=benchmarks
	@sed -i.bak '/^"POT-Creation-Date:/d' $(catalogue).po && rm -f $(catalogue).po.bak
	@msgfmt --check --statistics -o $(catalogue).mo $(catalogue).po

# make chaos KILLS=2000 CHAOS="--rate 25 --times"    (first it shows that its checks can fail; a kill takes about 3 s; --times: slowness fails it)
chaos:
	@$(install) test
	@$(bare) $(call quoted,$(python)) -m tests.chaos --self-test
	@exec $(bare) $(call quoted,$(python)) -m tests.chaos $(if $(KILLS),--kills $(KILLS)) $(CHAOS)

bench:
	@$(install) test
	@exec $(bare) $(call quoted,$(python)) -m benchmarks $(BENCH)

# The demo's database and everything that was built. The virtualenv stays.
clean:
	@if [ -d $(call quoted,$(run_data)) ] && [ -x $(call quoted,$(python)) ]; then $(call quoted,$(python)) -m flashduty.run --remove $(call quoted,$(run_data)); fi
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache staticfiles
	@find $(HOUSES) tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
HOUSES = flashduty escalation channels_app templates_app mapping
