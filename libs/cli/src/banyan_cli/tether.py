"""Run as a script: ties this process to its parent's life, then becomes the command it is given.

On Linux the kernel then kills the command when the supervisor dies, even by kill -9. It is a
program of its own, and not a hook between fork and exec, because the supervisor has threads
(gRPC's) that a plain fork would cut in half. It imports nothing of ours, to start in no time.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we could ask
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
