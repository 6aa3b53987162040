"""A field is read from its variable, converted by its type and held to its bounds; a secret shows nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.config.variables import NO_SECRET, Secret, read, setting


@dataclass(frozen=True)
class Sample:
    count: int = setting(3, ge=1, description="")
    share: float = setting(0.5, gt=0, lt=1, description="")
    is_on: bool = setting(False, description="")
    way: Literal["up", "down"] = setting("up", description="")
    most: int | None = setting(None, le=9, description="")
    url: str = setting("", variable="CELERY_URL", repr=False, description="")
    key: Secret = setting(NO_SECRET, description="")


def of_environ(**environ: str) -> tuple[dict[str, Any], list[str]]:
    return read(Sample, {}, environ)


def test_each_type_is_read_from_its_text():
    values, wrong = of_environ(
        GRAFT_COUNT="7", graft_share="0.25", GRAFT_IS_ON="Yes", GRAFT_WAY="down", GRAFT_MOST="9", CELERY_URL="redis://",
        GRAFT_KEY="canary", GRAFT_URL="not this name",
    )  # fmt: skip
    assert values == vars(Sample(7, 0.25, True, "down", 9, "redis://", Secret("canary")))
    assert not wrong


def test_without_variables_the_defaults_hold():
    assert of_environ() == (vars(Sample()), [])


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"GRAFT_COUNT": "0"}, "GRAFT_COUNT=0 must be at least 1"),
        ({"GRAFT_COUNT": "1.5"}, "GRAFT_COUNT=1.5 must be a whole number"),
        ({"GRAFT_COUNT": ""}, "GRAFT_COUNT= must be a whole number"),
        ({"GRAFT_SHARE": "0"}, "GRAFT_SHARE=0 must be more than 0"),
        ({"GRAFT_SHARE": "1"}, "GRAFT_SHARE=1 must be less than 1"),
        ({"GRAFT_SHARE": "nan"}, "GRAFT_SHARE=nan must be a number"),
        ({"GRAFT_IS_ON": "perhaps"}, "GRAFT_IS_ON=perhaps must be true or false"),
        ({"GRAFT_WAY": "Up"}, "GRAFT_WAY=Up must be up or down"),
        ({"GRAFT_MOST": "10"}, "GRAFT_MOST=10 must be at most 9"),
    ],
)
def test_a_text_that_does_not_fit_is_refused_with_its_variable_and_the_limit(environ, told):
    assert of_environ(**environ)[1] == [told]


def test_all_that_is_wrong_is_said_at_once():
    assert len(of_environ(GRAFT_COUNT="0", GRAFT_SHARE="2", GRAFT_WAY="left")[1]) == 3


@pytest.mark.parametrize("value", [True, 1.5, None, "x", [1]])
def test_a_caller_is_held_to_the_type_as_well(value):
    assert read(Sample, {"count": value}, {})[1] == [f"GRAFT_COUNT={value} must be a whole number"]


def test_what_a_caller_gives_counts_before_the_environment():
    assert read(Sample, {"count": 5, "share": 1 / 4, "most": None}, {"GRAFT_COUNT": "6"})[0]["count"] == 5


def test_a_field_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="Sample has no counts"):
        read(Sample, {"counts": 5}, {})


def test_neither_a_secret_nor_a_hidden_value_is_shown():
    given = {"url": 5, "key": b"canary"}
    assert read(Sample, given, {})[1] == ["CELERY_URL must be text", "GRAFT_KEY must be text"]
    shown = f"{Secret('canary')} {Sample(url='canary', key=Secret('canary'))!r}"
    assert "canary" not in shown


@given(st.integers(1))
def test_a_whole_number_keeps_its_value(number):
    assert of_environ(GRAFT_COUNT=str(number))[0]["count"] == number
