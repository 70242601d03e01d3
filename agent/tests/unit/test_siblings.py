"""What a worker process says of its siblings."""

import os
import subprocess
import sys


def test_a_killed_sibling_is_no_child_of_the_supervisor_any_more(tb):
    code = "import sys; sys.stdin.read()"
    one, other = (subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(2))
    try:
        said = tb.siblings(other.pid, os.getpid())
        assert said["supervisor"] == os.getpid()
        assert {one.pid, other.pid} <= set(said["workers"])
        one.kill()
        one.wait()
        left = tb.siblings(other.pid, os.getpid())["workers"]
        assert one.pid not in left
        assert other.pid in left
        assert tb.siblings(one.pid, os.getpid()) == {}, "who is no child has another supervisor by now"
    finally:
        for process in (one, other):
            process.kill()
            process.wait()


def test_without_a_supervisor_nothing_is_said(tb):
    assert tb.siblings(1, 0) == {}
