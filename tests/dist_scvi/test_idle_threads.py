"""Threads that wait sleep, also where no command but a user's program imports the package."""

import os
import subprocess
import sys


def test_idle_threads_sleep_unless_the_user_says_otherwise() -> None:
    shown = "os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'], 'torch' in sys.modules"
    code = f"import os, sys, dist_scvi; print({shown})"
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    found = [
        subprocess.run([sys.executable, "-c", code], env={**env, **own}, capture_output=True, text=True, check=True)
        for own in ({}, {"KMP_BLOCKTIME": "7"})
    ]
    assert [one.stdout.split() for one in found] == [["PASSIVE", "0", "False"], ["PASSIVE", "7", "False"]]
