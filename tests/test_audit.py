"""What the audit makes of pip-audit's answer."""

from __future__ import annotations

from tests.audit import judge

SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "torch", "version": "2.14.1+cu130", "skip_reason": "Dependency not found on PyPI"}
WEAK = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.0.1"]}]}
UNMENDED = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}


def test_a_known_weakness_fails():
    assert judge([SOUND, WEAK, UNKNOWN]) == (False, "pillow 9.0: PYSEC-1, mended in 9.0.1")
    assert judge([UNMENDED]) == (False, "pillow 9.0: PYSEC-2, mended in no version yet")


def test_no_weakness_passes_and_says_of_how_many():
    assert judge([SOUND, UNKNOWN]) == (True, "1 of 2 packages audited, no weakness known")


def test_an_index_that_knows_nothing_is_not_taken_for_a_clean_bill():
    goes_on, message = judge([UNKNOWN, UNKNOWN])
    assert goes_on
    assert message.startswith("audit skipped")
