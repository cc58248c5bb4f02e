# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test tables soak clean

# A real clip that ships with gradio, and a generated one whose evidence is known.
demo: .venv/ready
	mkdir -p viz/clips
	cp "$$($(BIN)/python -c 'from gradio.media import get_video; print(get_video("b.mp4"))')" viz/clips/real.mp4
	$(BIN)/python -m stabn.synthetic viz/clips/synthetic.mp4 --seed 254
	$(BIN)/stabn-explain viz/clips/real.mp4 viz/clips/synthetic.mp4 --out viz --overwrite
	@echo "Open viz/synthetic/overlay.mp4 and viz/real/overlay.mp4 in a browser or player; figure.png beside each one."

# The tests of the page drive a real browser, Debian's; where it cannot be installed they are skipped.
test: .venv/ready
	command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -q && \
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; } || \
	echo 'chromium is missing, the tests in the browser are skipped: apt-get install chromium'
	$(BIN)/python -m pytest

# Everything that depends on the bundled weights or on the generator, made anew. The benchmark takes half an hour on two
# cores; its folder has the weights' hash in its name, so that it goes on where it was stopped, for these weights only.
tables: .venv/ready
	$(BIN)/python -m explain.evidence --checkpoint synthetic
	$(BIN)/python -m explain.evidence --checkpoint plain
	hash=$$($(BIN)/python -c "from stabn.checkpoint import weights_hash; print(weights_hash('synthetic')[:16])") && \
	$(BIN)/stabn-benchmark --clips 60 --out viz/benchmark-$$hash && \
	mkdir -p docs && cp viz/benchmark-$$hash/benchmark.json viz/benchmark-$$hash/benchmark.png docs/
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/contact_sheet.py
	$(BIN)/python -m stabn.synthetic viz/clips/figure.mp4 --seed 254
	$(BIN)/stabn-explain viz/clips/figure.mp4 --out viz --overwrite
	$(BIN)/python -c "from PIL import Image; i = Image.open('viz/figure/figure.png'); i.resize((i.width // 2, i.height // 2)).save('docs/figure.png', optimize=True)"

# Everything attacked, hours long; it goes on where it was stopped, and writes docs/reliability.md. CLIPS=FOLDER damages
# real videos too.
soak: .venv/ready
	$(BIN)/python benchmarks/soak.py --rounds 10 --minutes 600 $(if $(CLIPS),--clips $(CLIPS))

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stabn needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/python -c 'import torchvision' || { echo 'torch and torchvision come from different releases: remove .venv and try again'; exit 1; }
	$(BIN)/python -c 'import cv2' || { echo 'OpenCV needs the system library libGL: apt-get install libgl1 (Debian, Ubuntu)'; exit 1; }
	touch $@

clean:
	rm -rf .venv viz build dist
