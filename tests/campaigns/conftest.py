"""The counts that a campaign records with `record_property("campaign", …)`, at the end of the run."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter):
    lines = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "campaign"
    ]
    if lines:
        terminalreporter.section("campaigns")
        for line in lines:
            terminalreporter.write_line(line)
