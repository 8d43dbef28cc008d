"""TensorBoard's files: whole records, and no run stopped by them."""

import struct

import pytest

import effgen as eg
from tests.core.watched_runs import BadStep, made


def events(folder):
    """Return the events of every file in `folder`, which must hold whole records."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            contents = data[12 : 12 + length]
            sums = struct.unpack("<II", data[8:12] + data[12 + length : 16 + length])
            assert sums == (masked_crc32c(data[:8]), masked_crc32c(contents))
            yield Event.FromString(contents)
            data = data[16 + length :]


def test_tensorboard_s_records_are_its_own(tmp_path):
    run = eg.guarded(made(trainer=BadStep()), eg.Skip())
    eg.drain(eg.tensorboard(run, tmp_path))
    version, hidden, *rest = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (hidden.step, hidden.session_log.status) == (1, 1)
    found = [(e.step, v.tag, v.simple_value) for e in rest for v in e.summary.value]
    assert found == [(s, name, 2.0) for s in (4, 8, 12) for name in ("loss", "twice")]


def test_a_failing_tensorboard_stops_no_run(tmp_path):
    folder = tmp_path / "board"

    def spoiled(run):
        for state, _ in run:
            if int(state.step) == 4:
                (path,) = folder.iterdir()
                path.unlink()
                folder.rmdir()
                folder.touch()

    run = eg.tensorboard(made(), folder)
    with pytest.warns(eg.RunWarning, match="`loss` of step 8 is missing") as caught:
        spoiled(run)
    assert len(caught) == 1
    assert int(run.state.step) == 12
