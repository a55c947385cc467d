"""Extraction by copies in the report: held-out images at 0, a line an arm, and nothing where nothing differs."""

from __future__ import annotations

from typing import Any

from unmem.evaluate.statistics import rate
from unmem.recipes.copies_figures import copies_figures, of_copies


def an_arm(hits: dict[int, int], trials: int = 20) -> dict[str, Any]:
    estimates = {
        "extracted": rate(sum(hits.values()), 100, 0.95).as_json(),
        "false_positives": rate(1, 100, 0.95).as_json(),
        **{f"extracted_by_copies[{k}]": rate(found, trials, 0.95).as_json() for k, found in hits.items()},
    }
    report = {"kind": "generate_and_filter", "type": "extraction", "estimates": estimates}
    return {"trained": True, "mitigations": [], "attacks": {"filter": report}, "quality": {}}


def test_the_figure_has_a_point_with_its_interval_for_each_number_of_copies() -> None:
    arms = {"plain": an_arm({1: 0, 8: 7, 64: 20}), "dedup": an_arm({1: 0, 8: 0, 64: 1})}
    (figure,) = copies_figures({"arms": arms})
    assert figure.title == "filter by copies"
    assert list(figure.legend) == ["plain", "dedup"]
    assert figure.svg.count("<circle") == 6
    assert figure.svg.count(" dashed") == 2
    for copies in ("1", "8", "64"):
        assert f">{copies}</text>" in figure.svg


def test_the_table_begins_with_held_out_images() -> None:
    arms = {"plain": an_arm({1: 0, 8: 7}), "other": an_arm({})}
    table = of_copies({"arms": arms})
    assert [column.title for column in table.columns] == ["0", "1", "8"]
    assert [column.cells["plain"].text for column in table.columns] == ["1 of 100", "0 of 20", "7 of 20"]
    assert [column.cells["other"].text for column in table.columns][1:] == ["\N{EN DASH}"] * 2


def test_where_all_planted_images_have_as_many_copies_there_is_neither() -> None:
    arms = {"plain": an_arm({})}
    assert copies_figures({"arms": arms}) == []
    assert of_copies({"arms": arms}).columns == []
