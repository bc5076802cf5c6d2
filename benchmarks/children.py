"""Measurements in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_worker(module: str, *arguments: object) -> Any:
    """What `python -m MODULE --worker ARGUMENTS` printed, which is JSON."""
    command = [sys.executable, "-m", module, "--worker", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)
