"""The report of a study: tables, figures and one page, from run folders alone."""

from tamt.report.run import report

__all__ = ["report"]
