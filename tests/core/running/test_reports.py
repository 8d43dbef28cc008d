"""What long steps say is heard by the innermost listener alone."""

import pytest

from effgen.core.running.reports import listening, report


def test_the_innermost_listener_hears_until_it_is_done():
    outer, inner = [], []
    report("nobody")
    with listening(outer.append):
        report("one")
        with listening(inner.append):
            report("two")
        report("three")
    report("nobody")
    assert (outer, inner) == (["one", "three"], ["two"])


def test_a_failure_ends_the_listening():
    heard = []
    with pytest.raises(KeyError), listening(heard.append):
        raise KeyError
    report("nobody")
    assert heard == []
