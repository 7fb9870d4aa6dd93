"""What a run leaves in Prefect for a person: its report as a table."""

from typing import Any

from flows.console import report_lines
from pipeline.operations import Report


def publish_report(flow: str, report: Report) -> None:
    """A markdown artifact, keyed by flow and domain, so that Prefect keeps its history."""
    from prefect.artifacts import create_markdown_artifact

    lines = [f"# {flow} {report.domain}", "", *(f"- `{line}`" for line in report_lines(report))]
    lines += [f"- note: {note}" for note in report.notes]
    lines += [f"- **not done**: {problem}" for problem in report.problems[:50]]
    create_markdown_artifact("\n".join(lines), key=f"{flow}-{report.domain}".replace("_", "-"))


def publish_page(domain: str, page: Any, summary: list[str], table: str) -> None:
    """Where the verification page lies, what it says, and its headline table."""
    from prefect.artifacts import create_markdown_artifact

    said = "\n".join(f"- {sentence}" for sentence in summary)
    text = f"# Verification of {domain}\n\nThe page lies at `{page}`.\n\n{said}\n\n```\n{table}\n```"
    create_markdown_artifact(text, key=f"report-{domain}".replace("_", "-"))


def publish_view(domain: str, written: Any) -> None:
    """Where the forecast page lies, and which forecast it shows."""
    from prefect.artifacts import create_markdown_artifact

    text = (
        f"# Forecast page of {domain}\n\nThe page lies at `{written.page}`. It shows the {written.kind} forecast of "
        f"{written.reference_time}, made by {written.method}."
    )
    create_markdown_artifact(text, key=f"view-{domain}".replace("_", "-"))
