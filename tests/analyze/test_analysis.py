"""An analysis is computed in parts, which are kept as long as what they depend on is the same."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sglm.analyze import analysis as module
from sglm.analyze.analysis import Part, Progress, carry_out, remaining_seconds
from sglm.errors import InputError


@dataclass(kw_only=True)
class Sum:
    """A finding: a sum."""

    total: float

    def as_json(self) -> dict[str, Any]:
        return {"total": self.total, "undefined": math.nan}

    def rows(self) -> list[list[str]]:
        return [["total"], [f"{self.total:g}"]]

    def summary(self) -> str:
        return f"The total is {self.total:g}."

    def draw(self, figure: Any) -> None:
        figure.subplots().bar(["total"], [self.total])


@dataclass(kw_only=True)
class Adding:
    """An analysis: adds numbers, one a part."""

    numbers: Sequence[float] = (1.0, 2.0, 4.0)
    needs: float = 0.0
    fails_at: float | None = None
    text: str = "one"
    computed: list[float] = field(default_factory=list)
    what: str = "adding"

    def memory_bytes(self) -> float:
        return self.needs

    def parts(self) -> Sequence[Part]:
        return [
            Part(
                name=f"number-{number:g}",
                compute=partial(self.one, number),
                seconds=2,
                depends_on={"number": number, "text": self.text},
            )
            for number in self.numbers
        ]

    def one(self, number: float) -> dict[str, Any]:
        if number == self.fails_at:
            raise KeyboardInterrupt
        self.computed.append(number)
        return {"value": number, "undefined": math.nan}

    def finding(self, values: Mapping[str, dict[str, Any]]) -> Sum:
        return Sum(total=sum(each["value"] for each in values.values()))


def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(Adding(fails_at=4.0), tmp_path)
    again = Adding()
    assert remaining_seconds(again, again.parts(), tmp_path) == 2
    seen: list[Progress] = []
    finding = carry_out(again, tmp_path, report=seen.append)
    assert again.computed == [4.0]
    assert finding.as_json()["total"] == 7.0
    assert [(each.part, each.done, each.seconds_left) for each in seen] == [
        ("number-4", 2, 2),
        (None, 3, 0),
    ]
    written = json.loads((tmp_path / "adding.json").read_text())
    assert written == {"total": 7.0, "undefined": None}
    assert (tmp_path / "adding.png").read_bytes().startswith(b"\x89PNG")


def test_parts_of_other_settings_and_damaged_ones_are_computed_again(tmp_path: Path) -> None:
    carry_out(Adding(numbers=(1.0, 2.0)), tmp_path)
    other = Adding(numbers=(1.0, 2.0), text="two")
    carry_out(other, tmp_path)
    assert other.computed == [1.0, 2.0]
    (tmp_path / "parts/adding/number-2.json").write_text('{"key": ')
    mended = Adding(numbers=(1.0, 2.0), text="two")
    carry_out(mended, tmp_path)
    assert mended.computed == [2.0]


def test_parts_are_kept_when_others_are_added(tmp_path: Path) -> None:
    carry_out(Adding(numbers=(1.0, 2.0)), tmp_path)
    more = Adding(numbers=(1.0, 2.0, 4.0))
    assert carry_out(more, tmp_path).as_json()["total"] == 7.0
    assert more.computed == [4.0]


def test_what_sglm_has_written_so_far_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "__version__", "0.1.0")
    folder = tmp_path / "parts/adding"
    folder.mkdir(parents=True)
    # As it was on disk before `Part.key`.
    key = "7cb33c64918788f1112ab9a7f34d28ffbf96f468adbf9aecc1cc9fd5a97c532a"
    (folder / "number-4.json").write_text(json.dumps({"key": key, "value": {"value": 4.0}}))
    found = Adding(numbers=(4.0,))
    assert carry_out(found, tmp_path).as_json()["total"] == 4.0
    assert found.computed == []


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert carry_out(Adding()).as_json()["total"] == 7.0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_given_as_a_path() -> None:
    analysis = Adding()
    with pytest.raises(InputError, match="a folder must be given as a path"):
        carry_out(analysis, 7)  # type: ignore[arg-type]
    assert analysis.computed == []


def test_too_little_memory_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 2.0 * 2**30)
    large = Adding(needs=3.0 * 2**30)
    with pytest.raises(InputError, match=r"3\.0 GiB of memory, and 2\.0 are free; give fewer"):
        carry_out(large, tmp_path)
    assert large.computed == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    in_vain = Adding()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InputError, match=r"cannot be written to .* give another --out DIR"):
            carry_out(in_vain, out)
    assert in_vain.computed == []
