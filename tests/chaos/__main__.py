"""`python -m tests.chaos [--kills N] [--seconds S] [--rate R] [--seed X]`; `--self-test` shows that the checks can fail."""

import argparse
import signal
import sys

from . import driver, selftest


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Kills the real product wherever it can be killed, and asks the provider."
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0, help="no new kill after so long; 0: ten for each kill")
    parser.add_argument("--rate", type=float, default=25, help="alerts a second")
    parser.add_argument("--slowest", type=float, default=0.05, help="the provider answers after 0 to so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help='only cells whose name, "SITE x KIND", contains this')
    parser.add_argument("--keep", action="store_true", help="leave the data folder and the log where they are")
    parser.add_argument(
        "--times", action="store_true", help="what is slower than its goal fails the run, too (on a machine that is calm enough to judge)"
    )
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return selftest.run()
    options.seconds = options.seconds or 10 * options.kills
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up on the way
    return driver.Driver(options).main()


if __name__ == "__main__":
    sys.exit(main())
