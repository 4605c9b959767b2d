"""The layout on a mesh: threads of CPU devices that are forced."""

import os

from experiments.mesh import layout


def test_forced_cpu_devices_get_threads_unless_their_number_is_given(monkeypatch):
    monkeypatch.delenv("NPROC")
    layout.give_cpu_devices_threads()  # eight devices in all tests
    assert os.environ["NPROC"] == "32"
    monkeypatch.setenv("NPROC", "5")
    layout.give_cpu_devices_threads()
    assert os.environ["NPROC"] == "5"
