"""What `prograde check` found, function by function: the records of tests, made a table, a page or JSON."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from rich import box
from rich.table import Table

from .html_report import STYLE

AGREED, REFUSED, ABSENT, UNTESTED = "agreed", "refused", "not there", "not tested"


@dataclass
class Verdict:
    """Of one function: the tests it took part in, the error that came nearest to its bound, and what is wrong."""

    name: str
    outcome: str = UNTESTED
    tests: int = 0
    error: float | None = None
    bound: float | None = None
    where: str = ""
    wrong: list[str] = field(default_factory=list)
    example: str = ""
    skipped: str = ""
    within: str = ""
    """A function that was tested, and used it."""

    @property
    def share(self) -> float:
        """Of the bound, what the error takes."""
        if self.error is None or self.bound is None:
            return -1.0
        return self.error / self.bound if self.bound else math.inf if self.error else 0.0

    def see(self, compared: dict[str, Any], test: str) -> None:
        """Takes a comparison that is of this function alone."""
        seen = Verdict(self.name, error=compared["error"], bound=compared["limit"])
        if not self.where or (bool(compared["wrong"]), seen.share) > (bool(self.wrong), self.share):
            self.error, self.bound, self.where = seen.error, seen.bound, f"{compared['path']}, {test}"
        if compared["wrong"]:
            self.refuse(f"{compared['wrong']}, {test}", compared["example"])

    def refuse(self, said: str, example: str | None = None) -> None:
        self.outcome = REFUSED
        self.wrong.append(said)
        if example and (not self.example or len(example) < len(self.example)):
            self.example = example

    @property
    def cells(self) -> tuple[str, ...]:
        error, bound = ("" if v is None else f"{v:.1e}" if v else "exact" for v in (self.error, self.bound))
        why = f"within {self.within}" if self.within and self.outcome == UNTESTED else self.skipped
        where = self.where or (f"properties alone; {why}" if self.outcome == AGREED and self.skipped else why)
        return self.name, self.outcome, str(self.tests or ""), error, bound, where


HEADS = "name", "outcome", "tests", "worst error", "its bound", "where"


@dataclass
class Verdicts:
    """Of all functions, in the order of their modules."""

    subject: str
    functions: list[Verdict]
    absent: list[str] | None
    """Modules that are not there; None of a rule."""
    tests: int
    """Tests of the implementation."""
    others: int
    """Tests of something else, such as theorems about the reference."""
    broken: list[str]
    """Tests of something else that failed."""
    present: list[str] = field(default_factory=list)
    """Modules that are there."""

    def of(self, outcome: str) -> list[Verdict]:
        return [verdict for verdict in self.functions if verdict.outcome == outcome]

    @property
    def exit_code(self) -> int:
        """0 where all that is there agrees, 1 where something is refused, 2 where nothing was tested."""
        if self.of(REFUSED) or self.broken:
            return 1
        return 0 if self.of(AGREED) else 2

    @property
    def summary(self) -> str:
        counts = [f"{len(self.of(o))} {o}" for o in (AGREED, REFUSED, ABSENT, UNTESTED) if self.of(o)]
        return f"{self.subject}: {', '.join(counts) or 'nothing tested'}, in {self.tests:,} tests of it"

    @property
    def remarks(self) -> list[str]:
        """What else is to be said, in lines."""
        lines = self._absences()
        lines += [f"{v.name} {v.skipped}" for v in self.functions if v.skipped.startswith("accepts")]
        if self.others:
            lines.append(f"not counted: {self.others:,} tests of the reference itself, and of rules and models")
        lines += [f"failed, though nothing of the implementation is in it: {test}" for test in self.broken]
        if len(self.of(REFUSED)) > 1 and self.absent is not None:
            lines.append("what is refused first may be all that is wrong: functions of later modules call earlier ones")
        return lines

    def _absences(self) -> list[str]:
        """What is not there: a line for each module that is there in part, and one for all that are not."""
        lacking: dict[str, list[str]] = {}
        for verdict in self.of(ABSENT):
            module, _, name = verdict.name.partition(".")
            lacking.setdefault(module, []).append(name)
        found = {verdict.name.partition(".")[0] for verdict in self.functions if verdict.outcome != ABSENT}
        empty = [module for module in lacking if module not in found]
        lines = [f"not there in {module}: {', '.join(names)}" for module, names in lacking.items() if module in found]
        absent, there = [*(self.absent or ()), *empty], [module for module in self.present if module not in empty]
        if absent:
            names = absent if len(absent) <= len(there) or not there else ["all but " + there[0], *there[1:]]
            lines.append(f"modules that are not there: {', '.join(names)}")
        return lines

    def table(self) -> Table:
        """Without what is not there, and what was not chosen to be tested."""
        table = Table(box=box.SIMPLE_HEAD)
        for head in HEADS:
            table.add_column(head, justify="right" if head in HEADS[2:5] else "left", no_wrap=head != HEADS[-1])
        shown = [v for v in self.functions if v.outcome != ABSENT]
        for verdict in (v for v in shown if v.outcome != UNTESTED or v.within or v.skipped):
            table.add_row(*verdict.cells, style={REFUSED: "bold red", AGREED: ""}.get(verdict.outcome, "dim"))
        return table

    def text(self) -> str:
        """What is wrong, with examples, and the summary."""
        parts = [
            "\n".join([f"{verdict.name}: refused", *(f"  {said}" for said in verdict.wrong), "", verdict.example])
            for verdict in self.of(REFUSED)
        ]
        return "\n".join([*parts, *self.remarks, self.summary])

    def json(self) -> dict[str, Any]:
        finite = [
            {key: None if value == math.inf else value for key, value in asdict(v).items()} for v in self.functions
        ]
        return {**asdict(self), "functions": finite, "exit_code": self.exit_code}

    def page(self) -> str:
        """One HTML file that needs no other; what is not there stands in a line below the table."""
        rows = "".join(
            f'<tr class="{verdict.outcome.split()[-1]}">{"".join(map(_cell, HEADS, verdict.cells))}</tr>'
            for verdict in self.functions
            if verdict.outcome != ABSENT
        )
        wrong = "".join(
            f"<h3>{escape(v.name)}</h3><ul>{''.join(f'<li>{escape(said)}</li>' for said in v.wrong)}</ul>"
            + (f"<pre>{escape(v.example)}</pre>" if v.example else "")
            for v in self.of(REFUSED)
        )
        heads = "".join(_cell(head, head, "th") for head in HEADS)
        notes = "".join(f'<p class="note">{escape(remark)}</p>' for remark in self.remarks)
        title = escape(f"{self.subject}, held to the reference")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}{OWN_STYLE}</style>'
            f'</head>\n<body><main><h1>{title}</h1><p class="lede">{escape(self.summary)}.</p>'
            f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{notes}{wrong}'
            "</main></body></html>\n"
        )


OWN_STYLE = "tr.refused td{color:var(--warm)}tr.tested td{color:var(--soft)}" + (
    "pre{background:var(--ground);padding:12px;overflow-x:auto;font-size:.8rem}.lede{max-width:none}"
    "td{vertical-align:baseline}td:last-child{white-space:normal;overflow-wrap:anywhere;min-width:12rem}"
)


def _cell(head: str, content: str, tag: str = "td") -> str:
    return f"<{tag}{' class=n' if head in HEADS[2:5] else ''}>{escape(content)}</{tag}>"


def read(subject: str, records: Sequence[dict[str, Any]]) -> Verdicts:
    """What the records of tests say.

    A comparison is evidence for the function that it is named after, or calls alone. What several functions took part
    in counts against those of them that are refused by themselves, and against all where none is. The example is a
    comparison's where there is one.
    """
    start, tests = records[0], [record for record in records if "test" in record]
    order = {module: index for index, module in enumerate(start["modules"])}
    found = {name: Verdict(name, UNTESTED if there else ABSENT) for name, there in start["functions"].items()}
    absent = [module for module in order if module not in start["present"]]
    whole = Verdicts(subject, [], absent, 0, 0, [], list(start["present"]))
    joint: list[tuple[list[Verdict], str, str | None, bool]] = []
    for record in tests:
        test, said = record["test"], f"{record['said']}, {record['test']}"
        used = [found.setdefault(name, Verdict(name)) for name in foremost(record["used"], order)]
        if record["outcome"] == "skipped" or not used:
            whole.others += record["outcome"] == "passed"
            whole.broken += [said] * (record["outcome"] == "failed")
            _skip(used, record["said"])
            continue
        whole.tests += 1
        for name in record["used"]:
            found.setdefault(name, Verdict(name)).within = used[0].name
        for verdict in used:
            verdict.tests += 1
        for compared in record["compared"]:
            names = of(compared["name"], foremost(compared["functions"], order))
            own = [found.setdefault(name, Verdict(name)) for name in names]
            if len(own) == 1:
                own[0].see(compared, test)
            elif compared["wrong"]:
                joint.append((own or used, f"{compared['wrong']}, {test}", compared["example"], False))
        if record["outcome"] == "failed" and not any(compared["wrong"] for compared in record["compared"]):
            joint.append((used, said, record.get("example"), True))
    for several, said, example, is_property in sorted(joint, key=lambda one: one[3]):
        for verdict in [v for v in several if v.outcome == REFUSED] or several:
            verdict.refuse(said, None if is_property and verdict.example else example)
    for verdict in found.values():
        if verdict.outcome != REFUSED and verdict.tests:
            verdict.outcome = AGREED
    whole.functions = sorted(found.values(), key=lambda verdict: order[verdict.name.partition(".")[0]])
    return whole


def checked(subject: str, suite: Any, rule: Any, device: str) -> Verdicts:
    """What the common checks of the suite say of a rule."""
    whole = Verdicts(subject, [], None, 0, 0, [])
    with suite.on(device):
        for name, check in suite.CHECKS.items():
            verdict = Verdict(name, AGREED, tests=1)
            try:
                check(suite.as_example(rule))
            except suite.Skipped as skipped:
                verdict = Verdict(name, UNTESTED, skipped=str(skipped))
            except Exception as error:
                said = str(error) if isinstance(error, AssertionError) else repr(error)
                verdict.refuse(said.partition("\n")[0])
            whole.functions.append(verdict)
    whole.tests = len(whole.functions)
    return whole


def _skip(used: Iterable[Verdict], said: str) -> None:
    for verdict in used:
        verdict.skipped = said
        if said == f"not there: {verdict.name}":
            verdict.outcome = ABSENT


def foremost(names: Iterable[str], order: dict[str, int]) -> list[str]:
    """Those of the module that comes last in order, which calls the others."""
    names = list(names)
    last = max((order[name.partition(".")[0]] for name in names), default=None)
    return [name for name in names if order[name.partition(".")[0]] == last]


def of(compared: str, functions: list[str]) -> list[str]:
    """The functions that a comparison is named after, as `foton.updates` or `updates`, else all."""
    first = compared.partition(".")[0].partition("[")[0]
    for meant in (compared, first):
        for name in functions:
            if meant in (name, name.partition(".")[2]):
                return [name]
    return functions
