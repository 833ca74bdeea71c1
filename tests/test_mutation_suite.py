import pytest

from tests import mutation_suite
from tests.mutation_suite import MODULES, ROOT


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_tests_that_watch_it(module):
    assert (ROOT / "src/dffg" / f"{module}.py").is_file()
    assert mutation_suite.tests_of(module)
    assert all((ROOT / path).is_file() for path in mutation_suite.tests_of(module))
