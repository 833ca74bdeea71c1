import ctypes
import gc
import weakref

import pytest
import torch

from dffg.machine import memory


@pytest.fixture
def settings(monkeypatch):
    """What mallopt is told, in order; -1 in `trimmed` for every return of memory."""
    told = []

    class Libc:
        def mallopt(self, parameter, value):
            told.append((parameter, value))

        def malloc_trim(self, pad):
            told.append(("trim", pad))

    monkeypatch.setattr(memory, "_glibc", Libc)
    return told


def test_the_outermost_use_restores_what_freed_memory_does(settings):
    with memory.reused_memory(), memory.reused_memory():
        pass
    mappings = [value for parameter, value in settings if parameter == -4]
    assert mappings == [0, 0, 65536]
    assert settings[-1] == ("trim", 0)


def test_it_ends_where_the_work_fails(settings):
    with pytest.raises(ValueError, match="no"), memory.reused_memory():
        raise ValueError("no")
    assert settings[-1] == ("trim", 0)


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.reused_memory():
        assert torch.ones(2).sum() == 2


MALLINFO2 = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


@pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")
def test_a_large_tensor_comes_from_the_heap():
    """glibc counts what it has mapped for single large blocks: none are, within."""

    def mapped_blocks():
        class Info(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]

        count = ctypes.CDLL("libc.so.6").mallinfo2
        count.restype = Info
        return int(count().hblks)

    large = 2**25
    outside = mapped_blocks()
    first = torch.empty(large)
    assert mapped_blocks() == outside + 1
    with memory.reused_memory():
        second = torch.empty(large)
        assert mapped_blocks() == outside + 1
    third = torch.empty(large)
    assert mapped_blocks() == outside + 2
    del first, second, third


class Cycle:
    """Refers to itself, so that only the garbage collector finds it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_made_within_is_found_and_what_was_there_is_left_alone() -> None:
    gc.collect()
    before = Cycle()
    old = weakref.ref(before)
    with memory.new_objects_only():
        assert gc.get_freeze_count() > 0
        new = weakref.ref(Cycle())
        del before
        memory.give_back()
        assert new() is None
        assert old() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old() is None


def test_what_was_set_aside_before_stays_so() -> None:
    gc.freeze()
    try:
        aside = gc.get_freeze_count()
        with memory.new_objects_only():
            assert gc.get_freeze_count() == aside
        assert gc.get_freeze_count() == aside
    finally:
        gc.unfreeze()
