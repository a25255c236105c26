"""The reasons for setting images aside are printed in a few lines."""

from __future__ import annotations

from foveate.messages.display import SetAsideMessages


def report_lines(reasons: list[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    teller = SetAsideMessages(lines.append)
    for name, reason in reasons:
        teller.set_aside(name, f"/in/{name}.tif", f"/in/{name}.tif: {reason}")
    teller.end()
    return lines


def test_a_few_reasons_are_printed_in_full() -> None:
    lines = report_lines([("a", "empty"), ("b", "cut"), ("c", "empty")])
    assert lines == [
        "set aside a: /in/a.tif: empty",
        "set aside b: /in/b.tif: cut",
        "set aside c: /in/c.tif: empty",
    ]


def test_reasons_that_differ_in_numbers_are_grouped() -> None:
    lines = report_lines(
        [(f"S{i}", f"{i} x 524,448 pixels need {i * 7} blocks") for i in range(300)]
    )
    assert len(lines) == 5, lines
    assert lines[3] == (
        "set aside 300 images in all for this reason: 0 x 524,448 pixels need 0 blocks"
    )
    assert lines[4] == "set aside 300 images in all; quarantine.csv lists them"


def test_many_reasons_are_counted() -> None:
    words = ["".join(chr(97 + (i // 26**k) % 26) for k in range(3)) for i in range(40)]
    lines = report_lines([(f"S{i}", f"the reason {words[i % 40]}") for i in range(400)])
    assert len(lines) <= 20, lines
    assert lines[-2] == "set aside 338 images for further reasons"
    assert lines[-1] == "set aside 400 images in all; quarantine.csv lists them"


def test_a_new_report_starts_empty() -> None:
    lines: list[str] = []
    teller = SetAsideMessages(lines.append)
    for _ in range(2):
        for i in range(10):
            teller.set_aside(str(i), f"{i}.png", "empty")
        teller.end()
    assert len(lines) == 2 * 5
    assert lines[3] == lines[8] == "set aside 10 images in all for this reason: empty"
