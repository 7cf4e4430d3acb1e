"""One request in a process of its own, so that whatever ends that process is entered in the ledger and stops nobody.

A task that is killed is a failed task: on KFP the loop's others would go on, but the bundle after them would not be
made, for anybody, night after night. So the task only waits for a process that does the work, and kills it before the
kernel would kill both: where a container's memory is short, all that runs in it dies at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from spare_core.errors import LedgerConflict
from spare_core.takedown.ledger import Event, Ledger

_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's memory is bounded, of control groups of the second and the first version."""
_SHARE: Final = 0.95
"""Of that bound, what both processes may have."""
_SECONDS: Final = 0.25
"""Between two looks at the memory."""


def run_apart(command: list[str], bound: int | None) -> str:
    """Run a command to its end; in words what ended it, empty if it ended well.

    Its memory, with that of this process, may grow to a share of ``bound`` bytes; a signal to this process ends it.
    """
    process = subprocess.Popen(command)
    too_large = 0
    try:
        while process.poll() is None:
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                used = _memory(process.pid) + _memory(os.getpid())
                if bound is not None and used > _SHARE * bound:
                    too_large = used
                    process.kill()
    finally:
        process.kill()
        process.wait()
    if too_large and bound is not None:
        return f"it took {too_large >> 20} of the {bound >> 20} MiB of memory that there are, and was ended"
    if process.returncode < 0:
        return f"its process was ended by {signal.Signals(-process.returncode).name}"
    return f"its process ended with exit code {process.returncode}" if process.returncode else ""


def memory_bound() -> int | None:
    """Bytes of memory that this container may have; None where nothing bounds it."""
    for path in _LIMITS:
        try:
            return int(path.read_text())
        except (OSError, ValueError):  # no such version here; or "max"
            continue
    return None


def enter_death(ledger: Ledger, request_id: str, worker: str, reason: str) -> None:
    """Say in the ledger that the process that ``worker`` had for a request was ended, unless somebody else is at it.
    One that had not begun counts as an attempt, too: else it would be tried for ever."""
    ledger.catch_up()
    standing = ledger.standing(request_id)
    begun = [Event(request_id, "erasing", {"worker": worker})] if standing.state == "planned" else []
    if begun or standing.held_by(worker):
        try:
            ledger.append([*begun, Event(request_id, "failed", {"reason": reason, "retry": True, "worker": worker})])
        except LedgerConflict as error:
            print(error, file=sys.stderr, flush=True)


def _memory(pid: int) -> int:
    """Bytes of a process's own, without files that are mapped; 0 of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(1024 * int(values.get(name, "0").split()[0]) for name in ("RssAnon", "RssShmem"))
