"""An event file is what TensorBoard's own writer would make, and a disk that is full is an error of the caller."""

import errno

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter

from gradexp.sinks.event_file import EventFile, event_files


def scalar(value):
    return Summary(value=[Summary.Value(tag="loss", simple_value=value)])


def plain(folder):
    """Return the events of a folder's file but for their times."""
    [path] = event_files(folder)
    events = list(EventFileLoader(str(path)).Load())
    for event in events:
        event.wall_time = 0
    return events


def test_it_holds_the_events_of_tensorboards_own_writer(tmp_path):
    for writer in (EventFile(tmp_path / "ours"), FileWriter(str(tmp_path / "theirs"))):
        writer.add_summary(scalar(1.0))
        writer.add_summary(scalar(2.0), 7)
        writer.close()
    assert plain(tmp_path / "ours") == plain(tmp_path / "theirs")


def test_it_replaces_the_file_of_an_earlier_run_and_no_other(tmp_path):
    other = tmp_path / "events.out.tfevents.1.other"
    other.write_bytes(b"")
    first = EventFile(tmp_path)
    first.close()
    second = EventFile(tmp_path)
    second.close()
    assert sorted(tmp_path.iterdir()) == sorted([other, second.path])


class Full:
    """A file on a disk that has no room left."""

    def __init__(self, room):
        self.room = room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    flush = close = lambda self: self.write(b"")


@pytest.mark.parametrize("room", [0, 150])
def test_a_full_disk_is_an_error_where_the_file_is_written_to(tmp_path, room, capfd, monkeypatch):
    file = Full(room)
    monkeypatch.setattr(type(tmp_path), "open", lambda *_: file)
    events = EventFile(tmp_path)
    with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012  of which the thread decides
        for step in range(1000):
            events.add_summary(scalar(0.0), step)
        events.close()
    with pytest.raises(OSError, match="No space left on device"):
        events.add_summary(scalar(0.0))
    assert capfd.readouterr().err == ""
    events._waiting.put(None)
    events._thread.join()
