"""Random problems against oracles, for some minutes: python -m tests.fuzz --help."""

import argparse
import os
import sys
from pathlib import Path

# Triton's kernels run in its interpreter, which it must be told before its import.
os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> int:
    from fuzz.session import AREAS, Session

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--first", type=int, help="that many problems, the same each time")
    parser.add_argument("--seed", type=int, help="exactly the problem of this seed")
    parser.add_argument("--only", choices=list(AREAS), help="problems of this area")
    given = parser.parse_args()
    session = Session(given.only)
    try:
        if given.seed is not None:
            session.show(given.seed)
        elif given.first is not None:
            session.first(given.first)
        else:
            session.run(given.minutes * 60)
    finally:
        session.close()
    return session.summary()


if __name__ == "__main__":
    sys.exit(main())
