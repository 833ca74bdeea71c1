"""Imported by the process that the tests fork others from: everything that is the same in all of them, done once."""

import dffg.cli.main
import dffg.pipeline.steps
import dffg.report.charts
import dffg.report.html  # noqa: F401
from tests.warm import warm_up

warm_up()
