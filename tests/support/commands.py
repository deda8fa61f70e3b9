"""`premed …` as people call it, from a shell."""

import os
import subprocess
import sys


def shell(line, **more):
    """(exit code, stdout, stderr) of a line of bash in which `premed` is this one."""
    premed = f'premed() {{ "{sys.executable}" -m premed "$@"; }}; set -o pipefail; '
    done = subprocess.run(["bash", "-c", premed + line], env=os.environ | more, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
