"""The product's settings with residents that only leave a trace: what tests of the supervisor run in real processes."""

import os

from flashduty.settings import *  # noqa: F403
from flashduty.settings import Q_CLUSTER

STINT = float(os.environ.get("DUMMY_STINT", "20"))
RESIDENTS = {
    "intake": ("tests.residents_dummy.work", ("intake",)),
    "engine": ("tests.residents_dummy.work", ("engine",)),
    "drain-0": ("tests.residents_dummy.drain", ("drain-0",)),
}
if os.environ.get("DUMMY_DEAD") and os.environ.get("FLASHDUTY_RESIDENT"):
    raise SystemExit("these workers cannot start")
if os.environ.get("DUMMY_BROKEN"):
    RESIDENTS["engine"] = ("tests.residents_dummy.missing", ())
Q_CLUSTER = Q_CLUSTER | {"workers": len(RESIDENTS) + 2}
