"""What a run leaves in Prefect for a person: its report as a table."""

from typing import Any

from flows.console import report_lines
from pipeline import times
from pipeline.operations import Report
from pipeline.publish import Outcome
from pipeline.settings import hide_secrets
from pipeline.storage import safe_name


def publish_report(flow: str, report: Report) -> None:
    """A markdown artifact, keyed by flow and domain, so that Prefect keeps its history."""
    from prefect.artifacts import create_markdown_artifact

    lines = [f"# {flow} {report.domain}", "", *(f"- `{line}`" for line in report_lines(report))]
    lines += [f"- note: {note}" for note in report.notes]
    lines += [f"- **not done**: {problem}" for problem in report.problems[:50]]
    create_markdown_artifact(hide_secrets("\n".join(lines)), key=artifact_key(flow, report.domain))


def publish_page(domain: str, page: Any, summary: list[str], table: str) -> None:
    """Where the verification page lies, what it says, and its headline table."""
    from prefect.artifacts import create_markdown_artifact

    said = "\n".join(f"- {sentence}" for sentence in summary)
    text = f"# Verification of {domain}\n\nThe page lies at `{page}`.\n\n{said}\n\n```\n{table}\n```"
    create_markdown_artifact(text, key=artifact_key("report", domain))


def publish_view(domain: str, written: Any) -> None:
    """Where the forecast page lies, and which forecast it shows."""
    from prefect.artifacts import create_markdown_artifact

    text = (
        f"# Forecast page of {domain}\n\nThe page lies at `{written.page}`. It shows the {written.kind} forecast of "
        f"{written.reference_time}, made by {written.method}."
    )
    create_markdown_artifact(text, key=artifact_key("view", domain))


def publish_training(name: str, domains: list[str], result: Any) -> None:
    """Where the checkpoint lies, from how much data, and the validation loss as it fell."""
    from prefect.artifacts import create_markdown_artifact

    rows = [f"| {row['step']:.0f} | {row['validation_loss']:.5f} |" for row in result.history[-50:]]
    table = "\n".join(["| step | validation loss |", "|---|---|", *rows]) if rows else "Only the data were written."
    text = (
        f"# Training of {name}\n\n{sum(result.windows.values())} windows of {', '.join(domains)}; "
        f"written to `{result.folder}`.\n\n{table}"
    )
    create_markdown_artifact(text, key=artifact_key("train", name))


def publish_retraining(done: Any) -> None:
    """What became of a challenger, and why, condition by condition."""
    from prefect.artifacts import create_markdown_artifact

    holds = {True: "yes", False: "no"}
    rows = [f"| {c['name']} | {holds.get(c['holds'], 'cannot be told')} | {c['text']} |" for c in done.checks]
    table = "\n".join(["| condition | holds | found |", "|---|---|---|", *rows]) if rows else ""
    page = f"The comparison lies at `{done.page}`.\n\n" if done.page else ""
    text = (
        f"# Retraining of {done.domain}: {done.state}\n\n{done.challenger} against {done.model}: {done.reason}\n\n"
        f"{page}{table}"
    )
    create_markdown_artifact(hide_secrets(text), key=artifact_key("retrain", done.domain))


def publish_housekeeping(done: Any, days: int, problems: list[str]) -> None:
    """What went, what stays and why, and how many days of the archive were packed."""
    from prefect.artifacts import create_markdown_artifact

    verb = "would go" if done.dry_run else "went"
    lines = [f"{len(done.gone)} things, {done.bytes / 1e6:.1f} MB, {verb}; {days} days of the archive were packed"]
    lines += [
        f"{one.part} {one.domain} {one.name}: {one.objects} objects, {one.bytes} bytes" for one in done.gone[:200]
    ]
    lines += [
        f"stays: {part} {domain}: {reason} ({count}, such as {name})"
        for (part, domain, reason), (count, name) in done.stays.items()
    ]
    lines += [f"**not done**: {problem}" for problem in problems]
    text = "\n".join(["# Housekeeping", "", *(f"- {line}" for line in lines)])
    create_markdown_artifact(hide_secrets(text), key="housekeeping")


def artifact_key(flow: str, name: str) -> str:
    """What Prefect allows as a key: lower-case letters, digits and dashes."""
    return f"{flow}-{safe_name(name).lower()}".replace("_", "-").replace(".", "-")


def publish_watch(outcomes: list[Outcome] | None) -> list[str]:
    """What the watchdog found and did; returns what was not done. None: a live process is at work."""
    from prefect.artifacts import create_markdown_artifact

    said, problems = outcome_lines(outcomes or [])
    if outcomes is None:
        said = ["a live process is at work; nothing to do"]
    elif not said:
        said = ["no live process is at work, and no cycle is due"]
    create_markdown_artifact(hide_secrets("\n".join(["# Watchdog", "", *(f"- {s}" for s in said)])), key="watchdog")
    return problems


def outcome_lines(outcomes: list[Outcome]) -> tuple[list[str], list[str]]:
    """A line for each cycle, and those that say what was not done."""
    lines, problems = [], []
    for outcome in outcomes:
        name = f"{outcome.domain} {times.iso(outcome.reference_time)}"
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in outcome.stages.items())
        made = [text for text in (outcome.method, outcome.path, stages, outcome.reason) if text]
        lines.append(f"{name}: {outcome.state}" + f" ({'; '.join(made)})" * bool(made))
        if outcome.state in {"skipped", "failed"}:
            problems.append(f"{name}: {outcome.state}: {outcome.reason}")
    return lines + [f"**not done**: {problem}" for problem in problems], problems
