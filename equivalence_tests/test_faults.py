"""Every planted fault can be planted: its text stands in its module once, and its test is there."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from prograde.equivalence_tests.faults import FAULTS, ROOT, Fault

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_to_replace_is_there_once(fault: Fault):
    spec = find_spec(f"{ROOT}.{fault.module}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).read_text().count(fault.before) == 1, f"{fault.module}: {fault.before!r}"
    file, test = fault.test.split("::")
    assert f"def {test}(" in (Path(__file__).parent / file).read_text(), fault.test


def test_names_tell_faults_apart():
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
