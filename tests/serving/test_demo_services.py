"""``make demo-services`` starts real servers, and ends them however it is ended itself."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import forking
from tests.support.workplaces import wait_for_stage


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_leaves_no_server_behind(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.demo_services", "--output", str(tmp_path / "out")]
    process = forking.popen(command)
    wait_for_stage(process, "validate")
    below = psutil.Process(process.pid).children(recursive=True)
    servers = [one for one in below if any(each.status == psutil.CONN_LISTEN for each in one.net_connections())]
    assert len(servers) >= 2
    process.send_signal(how)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    _, alive = psutil.wait_procs(below, timeout=10)
    assert [one.cmdline() for one in alive] == []
