"""Options that several methods share are stated once, and shown for each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypedDict, Unpack

import pytest

from foveate.attention_maps.glimpse_and_patches import GlimpseOptions
from foveate.encoders.small import SmallEncoder
from foveate.errors import OptionError
from foveate.methods.base import AbstractBagMethod, BagOptions
from foveate.nn.heads import Head
from foveate.parts import find, names
from foveate.parts.options import options, parse_options
from foveate.workflows.catalogue import read_meanings
from helpers.commands import Completed

Command = Callable[..., Completed]
BAG_METHODS = [n for n in names("methods") if issubclass(find("methods", n), AbstractBagMethod)]
SHARED = ("train_encoder", "chunk", "jitter")


class Below:
    """The base.

    Args:
        depth: how deep,
            in metres.
        hidden: what a subclass does not pass on.
        width: how wide.
    """

    def __init__(self, place: str, *, depth: int = 3, hidden: int = 9, width: float = 1.5) -> None:
        self.values = (place, depth, hidden, width)


class Passed(TypedDict, total=False):
    depth: int
    width: float


class Above(Below):
    """A part with options of its own.

    Args:
        height: how high.
        width: how wide, here.
    """

    def __init__(self, *, place: str, height: int = 2, **passed: Unpack[Passed]) -> None:
        super().__init__(place, **passed)
        self.height = height


class Top(Above):
    """A part two classes above the base.

    Args:
        tip: how sharp.
    """

    def __init__(self, *, place: str, tip: int = 7, depth: int = 4) -> None:
        super().__init__(place=place, depth=depth)
        self.tip = tip


def test_what_a_constructor_passes_on_is_an_option_with_the_default_of_the_base() -> None:
    known = options(Above)
    assert {name: option.default for name, option in known.items()} == {
        "height": 2,
        "depth": 3,
        "width": 1.5,
    }
    parsed = parse_options(Above, {"depth": "8", "width": "2"}, "part")
    assert parsed == {"depth": 8, "width": 2.0}
    assert Above(place="here", **parsed).values == ("here", 8, 9, 2.0)
    with pytest.raises(OptionError, match=r"no option 'part\.hidden'"):
        parse_options(Above, {"hidden": 1}, "part")


def test_a_class_without_a_constructor_has_the_options_that_it_inherits() -> None:
    assert list(options(type("Same", (Above,), {}))) == ["height", "depth", "width"]
    assert list(options(Top)) == ["tip", "depth"], "it passes nothing on"


def test_meanings_come_from_the_nearest_class_that_has_one() -> None:
    assert read_meanings(Above) == {
        "height": "how high.",
        "depth": "how deep, in metres.",
        "width": "how wide, here.",
    }
    assert read_meanings(Top) == {"tip": "how sharp.", "depth": "how deep, in metres."}


def test_a_meaning_without_an_option_is_listed_too() -> None:
    """So that the test of the catalogue sees it."""
    stale = type("Stale", (Above,), {"__doc__": "Something.\n\nArgs:\n    gone: what was.\n"})
    assert list(read_meanings(stale))[-1] == "gone"


def test_there_are_six_of_them() -> None:
    assert set(BAG_METHODS) == {"abmil", "clam", "dsmil", "mil_max", "mil_mean", "transmil"}


@pytest.mark.parametrize("name", BAG_METHODS)
def test_a_bag_method_has_the_options_of_all_and_says_nothing_of_them_itself(name: str) -> None:
    part = find("methods", name)
    known = options(part)
    assert {key: known[key].default for key in SHARED} == {
        "train_encoder": True,
        "chunk": 64,
        "jitter": True,
    }
    text = inspect.cleandoc(part.__doc__)
    assert not [key for key in SHARED if f"    {key}: " in text]
    given = parse_options(part, {"train_encoder": "no", "chunk": "5", "jitter": "no"}, "method")
    encoder = SmallEncoder(width=8, dim=16)
    method = part(encoder=encoder, heads=(Head("x", 1, False, "max"),), **given)
    assert (method.bag.train_encoder, method.bag.chunk, method.bag.jitter) == (False, 5, False)
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "shared"), [("glimpse", GlimpseOptions), ("mil_mean", BagOptions)]
)
def test_all_that_may_be_passed_on_has_a_default_in_the_base(name: str, shared: type) -> None:
    assert set(shared.__annotations__) <= set(options(find("methods", name)))


@pytest.mark.parametrize("name", names("methods"))
def test_own_meanings_stand_in_the_order_of_the_options(name: str) -> None:
    part = find("methods", name)
    _, _, text = inspect.cleandoc(part.__doc__).partition("Args:\n")
    order = {key: text.find(f"    {key}: ") for key in options(part)}
    places = [place for place in order.values() if place >= 0]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["mil_mean", "glimpse"])
def test_the_command_tells_what_each_option_means(name: str, foveate: Command) -> None:
    ended = foveate("methods", name)
    assert ended.returncode == 0
    shown, part = " ".join(ended.stdout.split()), find("methods", name)
    for key, meaning in read_meanings(part).items():
        default = options(part)[key].default
        text = meaning.replace("``", "`")
        assert f"--method.{key.replace('_', '-')} default {default} {text}" in shown
