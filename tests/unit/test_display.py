"""Why images are set aside is said in few lines, however many images and reasons there are."""

from __future__ import annotations

from foveate.messages.display import QuarantineMessages


def said_of(reasons: list[tuple[str, str]]) -> list[str]:
    said: list[str] = []
    teller = QuarantineMessages(said.append)
    for name, reason in reasons:
        teller.set_aside(name, f"/in/{name}.tif", f"/in/{name}.tif: {reason}")
    teller.end()
    return said


def test_a_few_reasons_are_said_in_full() -> None:
    said = said_of([("a", "empty"), ("b", "cut"), ("c", "empty")])
    assert said == [
        "set aside a: /in/a.tif: empty",
        "set aside b: /in/b.tif: cut",
        "set aside c: /in/c.tif: empty",
    ]


def test_reasons_that_differ_in_numbers_are_one() -> None:
    said = said_of([(f"S{i}", f"{i} x 524,448 pixels need {i * 7} blocks") for i in range(300)])
    assert len(said) == 5, said
    assert said[3] == (
        "set aside 300 images in all for this reason: 0 x 524,448 pixels need 0 blocks"
    )
    assert said[4] == "set aside 300 images in all; quarantine.csv lists them"


def test_many_reasons_are_counted() -> None:
    words = ["".join(chr(97 + (i // 26**k) % 26) for k in range(3)) for i in range(40)]
    said = said_of([(f"S{i}", f"the reason {words[i % 40]}") for i in range(400)])
    assert len(said) <= 20, said
    assert said[-2] == "set aside 338 images for further reasons"
    assert said[-1] == "set aside 400 images in all; quarantine.csv lists them"


def test_it_begins_anew() -> None:
    said: list[str] = []
    teller = QuarantineMessages(said.append)
    for _ in range(2):
        for i in range(10):
            teller.set_aside(str(i), f"{i}.png", "empty")
        teller.end()
    assert len(said) == 2 * 5
    assert said[3] == said[8] == "set aside 10 images in all for this reason: empty"
