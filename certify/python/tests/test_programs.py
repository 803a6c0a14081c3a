"""The programs, as the console scripts that the wheel brings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lipschitz
import pytest

BIN = Path(sys.executable).parent


def call(name, *arguments, **options):
    return subprocess.run([BIN / name, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def first(directory, *more):
    """A run of a few steps."""
    config = directory / "first.toml"
    config.write_text(call("train", "config", "demo").stdout)
    small = ["--set", "data.characters=20000", "--set", "train.steps=3", "--set", "lipschitz_target=10"]
    return call("train", "run", config, *small, *more, "--out", directory / "run")


def test_both_say_their_version_and_their_usage():
    for name in ("certify", "train"):
        assert call(name, "--version").stdout.startswith(f"{name} ")
        wrong = call(name, "--no-such")
        assert wrong.returncode == 2 and "Usage: " + name in wrong.stderr


def test_a_run_is_trained_certified_and_read_from_python(tmp_path):
    done = first(tmp_path)
    assert done.returncode == 0, done.stderr
    bound = call("certify", "bound", tmp_path / "run", "--json", "--effort", 0)
    certificate = lipschitz.certify(tmp_path / "run", effort=0)
    assert json.loads(bound.stdout) == certificate.document
    certificate.verify()
    certificate.save(tmp_path / "c.json")
    verified = call("certify", "verify", tmp_path / "c.json", tmp_path / "run")
    assert verified.returncode == 0 and "holds" in verified.stdout
    missing = call("certify", "bound", tmp_path / "no")
    assert missing.returncode == 2 and missing.stderr.startswith("error: ")


def test_a_sweep_starts_its_runs(tmp_path):
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(
        'preset = "demo"\n[set]\ntrain.steps = 2\ndata.characters = 20000\n[[grid]]\ntrain.seed = [0, 1]\n'
    )
    done = call("train", "sweep", sweep, "--out", tmp_path / "runs", "--jobs", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert [run["state"] for run in json.loads(done.stdout)] == ["finished", "finished"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    config = tmp_path / "long.toml"
    config.write_text(call("train", "config", "demo").stdout)
    words = [BIN / "train", "run", config, "--set", "train.steps=100000", "--set", "data.characters=20000", "--out", tmp_path / "run"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        metrics = tmp_path / "run" / "metrics.jsonl"
        for _ in range(600):
            if metrics.exists() and metrics.stat().st_size > 0:
                break
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 130 and "--resume" in said, said
