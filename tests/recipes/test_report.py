"""The report says all that the JSON says, escapes it, and says less when redacted."""

from __future__ import annotations

import copy
import html
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unmem.component import UserError, kinds
from unmem.recipes.arms_table import of_arms, of_costs
from unmem.recipes.defences import attacked, defence, own_settings
from unmem.recipes.figures import figures
from unmem.recipes.pareto import RULE, fronts
from unmem.recipes.report import render, table
from unmem.recipes.tables import counts, interval, number, plain
from unmem.recipes.verdict import verdict
from unmem.rundir import write_json

PICTURE = "data:image/png;base64,iVBORw0KGgo="
HASH, SOURCE = "0123456789ab", "private/alice <script>alert(1)</script> | holiday.png"
NAME = f"{HASH}:{SOURCE}"
VOID_TAGS = {"meta", "img", "br", "path", "circle", "polyline"}


def estimate(value: float | None, low: float | None, high: float | None, note: str = "", **n: int) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "note": note}


def membership(kind: str, value: float) -> dict[str, Any]:
    sizes = {"members": 800, "nonmembers": 800}
    return {
        "kind": kind,
        "type": "membership",
        "queries": 0 if kind == "blind" else 24,
        "estimates": {
            "auc": estimate(value, value - 0.0312, value + 0.0279, **sizes),
            "auc_planted": estimate(value + 0.1, value + 0.05, value + 0.15, members=8, nonmembers=800),
            "tpr_at_fpr[0.001]": estimate(None, None, None, "withheld: 800 cannot resolve 0.001", **sizes),
            "balanced_accuracy": estimate(value - 0.01, value - 0.1, value + 0.1, "chosen on the other half", **sizes),
            "tpr_transferred[0.1]": estimate(0.2345, 0.2, 0.27, "at 40 calibration images", successes=190, trials=810),
            "auc_generated": estimate(0.711, 0.7, 0.72, "own samples", members=50, nonmembers=800),
            "permutation_p_value": estimate(0.001, 0.0, 0.0037, exceeded=0, shuffles=1000),
        },
        "roc": [[0.0, 0.0], [0.0, 0.02], [0.1, 0.3], [1.0, 1.0]],
    }


def extraction(found: int) -> dict[str, Any]:
    match = {"id": NAME, "sample": 17, "distance": 0.0123, "ratio": 0.4567, "copies": 32, "planted": True}
    return {
        "kind": "generate_and_filter",
        "type": "extraction",
        "estimates": {
            "extracted": estimate(found / 800, 0.0011, 0.0219, successes=found, trials=800),
            "extracted_planted": estimate(found / 8, 0.0312, 0.4719, successes=found, trials=8),
            "false_positives": estimate(0.0, 0.0, 0.0046, "held-out images", successes=0, trials=800),
            "extracted_at_10x": estimate(
                3 * found / 800, found / 800, 0.06, "extrapolated", successes=3 * found, trials=800, found=found
            ),
        },
        "samples": 2048,
        "threshold": 0.5,
        "group_threshold": 0.03,
        "curve": [
            {"threshold": t, "extracted": e, "extracted_planted": 0, "false_positives": 0}
            for t, e in ((0.2, 0), (0.5, found), (1.2, 310))
        ],
        "samples_curve": [
            {"samples": n, "extracted": found * n / 2048, "false_positives": 0.0} for n in (2, 256, 2048)
        ],
        "matches": [match] * found,
    }


def nearness() -> dict[str, Any]:
    quantiles = {"level": [0.0, 0.5, 1.0], "member": [0.1, 0.2, 0.3], "nonmember": [0.12, 0.22, 0.32]}
    estimates = {"nearer_to_training": estimate(0.613, 0.592, 0.634, "0.5 is chance", successes=1255, trials=2048)}
    return {"kind": "nearest_distance", "type": "nearness", "estimates": estimates, "quantiles": quantiles}


def canaries(epsilon: float) -> dict[str, Any]:
    bound = estimate(epsilon, epsilon, None, "lower bound at delta 0.0005", canaries=500, guesses=40, correct=39)
    estimates = {
        "epsilon": bound,
        "exposure[1]": estimate(2.5, 2.1, 2.9, "bits", inserted=250, left_out=250),
        "exposure[16]": estimate(7.5, 7.1, 7.97, "bits", inserted=60, left_out=250),
    }
    return {"kind": "canary_audit", "type": "canaries", "queries": 24, "estimates": estimates, "delta": 0.0005}


def quality(value: float) -> dict[str, Any]:
    figure = estimate(value, value - 0.21, value + 0.23, "features: inception", samples=2048, real=800)
    reference = {"reference": 1.234, "reference_name": "members against held-out images"}
    return {"kind": "frechet", "estimate": figure, "better": "lower", **reference}


def arm(found: int, auc: float, **changes: Any) -> dict[str, Any]:
    attacks = {
        "generate_and_filter": extraction(found),
        "loss": membership("loss", auc),
        "nearest_distance": nearness(),
        "canary_audit": canaries(1.239),
        "blind": membership("blind", 0.503),
    }
    plain = {"trained": True, "mitigations": [], "training_images": 1048, "dropped": 0, "privacy": None, "measured": []}
    return (
        plain
        | {"attacks": attacks}
        | {"quality": {"frechet": quality(7.77)}, "seconds": {"data": 0.1, "train": 134.25}}
        | changes
    )


SPENT = {
    "epsilon": 9.9943, "delta": 0.0005, "unit": "one image", "relation": "add or remove one", "accountant": "PRV",
    "sampling": "Poisson", "sample_rate": 0.32, "noise_multiplier": 3.10059, "clip": 1.0, "steps": 500,
    "holds_for": "the 800 images that near_duplicates left", "not_covered": ["the loss curve"], "void": None,
    "groups": [{"copies": 32, "epsilon": 319.8, "delta": None}],
}  # fmt: skip
LAID_OUT = {
    "checks": {"accountant": "PLD (dp-accounting 0.6.0)", "pld_epsilon": 9.98520001, "agrees": True},
    "without_amplification": 56.6283, "replace_one": 22.6293, "tuning": {"runs": 10, "epsilon": 45.5759},
    "queries": [
        {"name": "central images", "noise_multiplier": 5.0, "sample_rate": 0.1, "steps": 50},
        {"name": "training", "noise_multiplier": 3.10059, "sample_rate": 0.32, "steps": 500},
    ],
    "self_check": {
        "passed": True, "engine": "bookkeeping", "cases": ["norms", "sums"],
        "worst": {"layer": "down_blocks.0.conv", "error": 3.61e-7},
    },
}  # fmt: skip


@pytest.fixture
def comparison() -> dict[str, Any]:
    mitigations = [{"kind": "near_duplicates", "hash": "phash", "keep": "/srv/alice/keep.txt"}, {"kind": "dp_sgd"}]
    return {
        "schema": 1,
        "recipe": "holiday <b>",
        "against": "baseline",
        "confidence": 0.95,
        "shadows": 0,
        "data": {
            "kind": "image_folder", "members": 800, "nonmembers": 800, "planted": 8, "copies": 32, "canaries": 500,
            "training_images": 1048, "shape": [8, 8, 1], "quarantined": 1,
        },
        "arms": {
            "baseline": arm(7, 0.6604),
            "dp": arm(0, 0.5271, mitigations=mitigations, training_images=800, dropped=248, privacy=SPENT),
        },
        "differences": {"dp": {"loss.auc": estimate(-0.1333, -0.1617, -0.1049, members=800, nonmembers=800)}},
        "unfinished": [],
        "verdict": ["baseline: 7 of 800 can be extracted.", "dp: none.", "Caution: members can be told apart."],
    }  # fmt: skip


def write(root: Path, comparison: dict[str, Any]) -> Path:
    """A run directory around a comparison."""
    write_json(root / "comparison.json", comparison)
    command = ["unmem", "run", "/srv/alice/holiday.yaml"]
    rest = {"python": "3.11", "system": "Linux", "device": "CPU", "packages": {"torch": "2.9"}}
    write_json(root / "provenance.json", {"command": command, "commit": "abc", "dirty": True, **rest})
    reason = f"cannot be decoded: cannot identify image file '{SOURCE}'"
    write_json(root / "quarantine.json", [{"source": SOURCE, "reason": reason}])
    for name, found in comparison["arms"].items():
        matches = found["attacks"].get("generate_and_filter", {}).get("matches", [])
        pairs = [{"attack": "generate_and_filter", **m, "generated": PICTURE, "training": PICTURE} for m in matches]
        shown = [{"id": f"{NAME}#copy-3", "distance": 2.0, "picture": PICTURE}]
        group = {"kept": NAME, "picture": PICTURE, "mitigation": "near_duplicates", "dropped": 31, "shown": shown}
        groups = [group] if found["dropped"] else []
        gallery = {"samples": [PICTURE], "pairs": pairs, "groups": groups, "groups_in_all": 8 * len(groups)}
        write_json(root / "arms" / name / "gallery" / "gallery.json", gallery)
    return root


def rendered(root: Path, **options: Any) -> tuple[str, str]:
    page, text = (path.read_text(encoding="utf-8") for path in render(root, **options))
    balanced(page)
    return page, text


def balanced(page: str) -> None:
    """Every element is closed, in order."""
    open_tags: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in VOID_TAGS:
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: Any) -> None:
            assert tag in VOID_TAGS

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Check().feed(page)
    assert open_tags == []


def every_estimate(found: Any) -> list[dict[str, Any]]:
    """All estimates anywhere below."""
    if isinstance(found, dict) and found.keys() >= {"value", "low", "high"}:
        return [found]
    below = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
    return [estimate for inner in below for estimate in every_estimate(inner)]


def test_page_says_every_estimate_with_interval_counts_and_note(tmp_path, comparison):
    page = html.unescape(rendered(write(tmp_path, comparison))[0])
    estimates = every_estimate(comparison)
    assert len(estimates) == 2 * (4 + 7 + 1 + 3 + 7 + 1) + 1
    for found in estimates:
        assert found["value"] is None or number(found["value"], found["low"], found["high"]) in page
        assert interval(found) in page
        assert counts(found) in page
        assert found["note"][1:] in page
    assert "7 of 800" in page
    assert "withheld" in page


def test_page_says_all_that_epsilon_depends_on(tmp_path, comparison):
    page, text = rendered(write(tmp_path, comparison))
    for key, value in SPENT.items():
        assert key.replace("_", " ") in page
        assert key.replace("_", " ") in text
        if isinstance(value, (str, int)):
            assert str(value) in page
            assert str(value) in text
    assert "9.9943" in page
    assert "319.8" in page
    assert "is k units" in page


def test_statement_shows_whatever_was_recorded(tmp_path, comparison):
    extra = {"examples_without_gradient": 0, "nothing_listed": [], "shares": [{"a": 1}, {"b": {"inner_key": 0.25}}]}
    comparison["arms"]["dp"]["privacy"] = SPENT | extra
    for content in rendered(write(tmp_path, comparison)):
        for expected in ("examples without gradient", "nothing listed", "none", "inner key", "0.25"):
            assert expected in content


def test_epsilon_stands_beside_what_it_would_be_otherwise(tmp_path, comparison):
    comparison["arms"]["dp"]["privacy"] = SPENT | LAID_OUT
    page, text = (html.unescape(content) for content in rendered(write(tmp_path, comparison)))
    for expected in (
        "9.98521", "PLD (dp-accounting 0.6.0); agrees", "56.6283", "22.6293", "45.5759", "all 10 runs",
        "central images", "check of the clipping before training: passed (bookkeeping; 2 cases; largest relative error",
        "3.6e-07 in down_blocks.0.conv)",
    ):  # fmt: skip
        assert expected in page
        assert expected in text
    assert "| training | 3.10059 | 0.32 | 500 |" in text
    assert "| as stated | 9.9943 | PRV; add or remove one, Poisson batches that stay secret |" in text
    comparison["arms"]["dp"]["privacy"] |= {"tuning": None}
    assert all("with tuning" not in content for content in rendered(write(tmp_path, comparison)))


def test_doubts_about_an_epsilon_are_cautions_of_the_verdict(comparison):
    data = comparison["data"] | {"planted": 0}
    for changes, expected in (
        ({}, []),
        ({"self_check": None}, []),
        ({"checks": LAID_OUT["checks"] | {"agrees": False}}, ["for dp two accountants differ", "epsilon 9.99"]),
        ({"self_check": LAID_OUT["self_check"] | {"passed": False}}, ["for dp the clipping of gradients failed"]),
    ):
        dp = comparison["arms"]["dp"] | {"privacy": SPENT | LAID_OUT | changes, "attacks": {}}
        text = " ".join(verdict(comparison | {"arms": {"dp": dp}, "data": data}))
        assert ("Caution" in text) is bool(expected)
        assert all(words in text for words in expected)


def test_epsilon_is_rounded_up_wherever_it_is_shown(tmp_path, comparison):
    comparison["arms"]["dp"]["privacy"] = SPENT | {
        "epsilon": 9.99430001, "groups": [{"copies": 32, "epsilon": 319.8000001}]
    }  # fmt: skip
    for content in (*rendered(write(tmp_path, comparison)), table({"run": comparison})):
        assert "9.99431" in content
        assert not re.search(r"9\.9943\b", content)
    assert "319.801" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("redact", [False, True], ids=["whole", "redacted"])
def test_page_says_how_many_groups_are_not_shown(tmp_path, comparison, redact):
    page, _ = rendered(write(tmp_path, comparison), redact=redact)
    assert "The 1 largest of 8 groups are shown, with 31 of the 248 dropped images." in page


def test_markdown_has_the_same_tables(tmp_path, comparison):
    _, text = rendered(write(tmp_path, comparison))
    for expected in ("7 of 800", "0.660", "7.77", "9.9943", "> Caution", "**−0.133**", "7 of 8"):
        assert expected in text
    rows = [line for line in text.replace(r"\|", "").splitlines() if line.startswith("|")]
    tables = "\n".join(line if line.startswith("|") else "" for line in text.replace(r"\|", "").splitlines())
    assert rows
    for block in filter(None, tables.split("\n\n")):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert "data:image" not in text


def test_names_are_escaped(tmp_path, comparison):
    page, text = rendered(write(tmp_path, comparison))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "holiday <b>" not in page
    assert "<script" not in text
    assert r"\| holiday.png" in text


def test_page_needs_nothing_from_outside(tmp_path, comparison):
    page, _ = rendered(write(tmp_path, comparison))
    for outside in ("http://", "https://", "<link", "<script", "@import", "url("):
        assert outside not in page
    assert page.count("<svg") == 2 + 1 + 2 + 1 + 1 + 1  # ROCs; exposure; two trade-offs; thresholds; samples; distances
    assert not re.search(r"\bnan\b", page)


def test_redacted_files_hold_no_picture_and_no_name(tmp_path, comparison):
    root = write(tmp_path, comparison)
    paths = render(root, redact=True)
    assert [path.name for path in paths] == ["report-redacted.html", "report-redacted.md"]
    for content in rendered(root, redact=True):
        assert "data:image" not in content
        for word in ("alice", "private", "holiday.", "script", "/home", "keep.txt", ".yaml"):
            assert word not in content
        assert HASH in content
        assert "cannot be decoded" in content
    assert f"{HASH}</span> kept, 31 dropped" in paths[0].read_text()


def test_redaction_keeps_the_copy_number_and_drops_ids_of_another_form(tmp_path, comparison):
    matches = comparison["arms"]["baseline"]["attacks"]["generate_and_filter"]["matches"]
    matches[0] = matches[0] | {"id": f"{NAME}\n#copy-12"}
    matches[1] = matches[1] | {"id": "private/another form.png"}
    page, text = rendered(write(tmp_path, comparison), redact=True)
    for content in (page, text):
        assert f"{HASH}#copy-12" in content
        assert "(left out)" in content
        assert "another form" not in content


def test_rendering_again_gives_the_same_bytes(tmp_path, comparison):
    root = write(tmp_path, comparison)
    first = [path.read_bytes() for path in render(root)]
    assert [path.read_bytes() for path in render(root)] == first
    assert not list(root.glob("*.partial"))


def test_cautions_and_a_void_guarantee_stand_apart(tmp_path, comparison):
    comparison["arms"]["dp"]["privacy"] = SPENT | {"void": "the seed is known"}
    page, text = rendered(write(tmp_path, comparison))
    assert page.index('class="caution"') < page.index("Caution: members")
    assert '<p class="void">Void: the seed is known' in page
    assert "ε = 9.9943" not in page
    assert "**Void: the seed is known.**" in text


def test_signs_of_differences(tmp_path, comparison):
    differences = comparison["differences"]["dp"]
    differences["loss.auc_planted"] = estimate(0.02, -0.01, 0.05, members=8, nonmembers=800)
    differences["generate_and_filter.extracted"] = estimate(None, None, None, more=0, fewer=0, items=0)
    page, _ = rendered(write(tmp_path, comparison))
    assert "▼ −0.133" in page
    assert ">0.020<" in page
    assert "▲ " not in page


def no_arms(comparison):
    comparison |= {"arms": {}, "differences": {}, "verdict": ["Not finished, and so not in this report: baseline."]}


def one_arm(comparison):
    del comparison["arms"]["dp"]
    comparison["differences"] = {}


def no_quality(comparison):
    for found in comparison["arms"].values():
        found["quality"] = {}


def no_attacks(comparison):
    comparison["differences"]["dp"] = {}
    for found in comparison["arms"].values():
        found["attacks"] = {}


def an_arm_without_its_attack(comparison):
    del comparison["arms"]["dp"]["attacks"]["loss"]
    comparison["arms"]["dp"]["quality"] = {}


def withheld_everywhere(comparison):
    for found in every_estimate(comparison):
        found |= {"value": None, "low": None, "high": None, "note": "nothing was counted"}


def no_planted(comparison):
    comparison["data"] |= {"planted": 0, "copies": 1}
    for found in comparison["arms"].values():
        del found["attacks"]["generate_and_filter"]["estimates"]["extracted_planted"]


def all_equal(comparison):
    for found in every_estimate(comparison):
        found |= {"value": 0.0, "low": 0.0, "high": 0.0}


CASES = [
    no_arms,
    one_arm,
    no_quality,
    no_attacks,
    an_arm_without_its_attack,
    withheld_everywhere,
    no_planted,
    all_equal,
]


@pytest.mark.parametrize("change", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("redact", [False, True], ids=["whole", "redacted"])
def test_missing_pieces_render(tmp_path, comparison, change, redact):
    change(comparison)
    page, text = rendered(write(tmp_path, comparison), redact=redact)
    assert comparison["data"]["kind"] in page
    assert text.startswith("# holiday")
    assert table({"run": comparison})


def test_a_run_without_gallery_and_provenance_renders(tmp_path, comparison):
    write_json(tmp_path / "comparison.json", comparison)
    for redact in (False, True):
        page, _ = rendered(tmp_path, redact=redact)
        assert "No provenance was recorded" in page
        assert "data:image" not in page


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 2}', '{"schema": 1, "recipe": "x"}'])
def test_missing_or_damaged_comparison_is_a_user_error(tmp_path, content):
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(UserError, match=r"comparison\.json"):
        render(tmp_path)
    assert not list(tmp_path.glob("report*"))


def test_damaged_arm_and_gallery_are_user_errors(tmp_path, comparison):
    root = write(tmp_path, comparison)
    (root / "arms" / "dp" / "gallery" / "gallery.json").write_text("[")
    with pytest.raises(UserError, match=r"gallery\.json"):
        render(root)
    (root / "arms" / "dp" / "gallery" / "gallery.json").write_text('{"samples": [], "pairs": [], "groups": []}')
    with pytest.raises(UserError, match=r"gallery\.json: not a gallery"):
        render(root)
    del comparison["arms"]["dp"]["quality"]
    with pytest.raises(UserError, match=r"run/comparison\.json: not a comparison of this version .*'quality'"):
        table({"run": comparison})


BREAKS: dict[str, Any] = {
    "no_seconds": lambda c: c["arms"]["dp"].pop("seconds"),
    "arms_as_list": lambda c: c.update(arms=["dp"]),
    "arm_as_text": lambda c: c["arms"].update(dp="dp"),
    "no_shape": lambda c: c["data"].pop("shape"),
    "members_as_text": lambda c: c["data"].update(members="many"),
    "report_without_type": lambda c: c["arms"]["dp"]["attacks"]["loss"].pop("type"),
    "value_as_text": lambda c: c["arms"]["dp"]["attacks"]["loss"]["estimates"]["auc"].update(value="high"),
    "curve_without_its_counts": lambda c: c["arms"]["dp"]["attacks"]["generate_and_filter"].update(curve=[{}]),
    "roc_of_nothing": lambda c: c["arms"]["dp"]["attacks"]["loss"].update(roc=[[]]),
    "match_without_distance": lambda c: c["arms"]["baseline"]["attacks"]["generate_and_filter"].update(matches=[{}]),
    "privacy_without_epsilon": lambda c: c["arms"]["dp"].update(privacy={"void": None}),
}
SEEN_BY_THE_TABLE = {
    "arms_as_list", "arm_as_text", "no_shape", "members_as_text", "report_without_type", "value_as_text",
    "privacy_without_epsilon",
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_malformed_comparison_is_one_user_error(tmp_path, comparison, name):
    root = write(tmp_path, comparison)
    BREAKS[name](comparison)
    write_json(root / "comparison.json", comparison)
    named = r"comparison\.json: not a comparison of this version \(\w+: .+\)$"
    for redact in (False, True):
        with pytest.raises(UserError, match=named):
            render(root, redact=redact)
    assert not list(root.glob("report*"))
    if name in SEEN_BY_THE_TABLE:
        with pytest.raises(UserError, match=named):
            table({str(root): comparison})


def test_table_aligns_the_arms_of_several_runs(comparison):
    other = copy.deepcopy(comparison)
    other["arms"]["baseline"]["quality"] = {}
    text = table({"a": comparison, "runs/b": other})
    head, rule, *rows = text.splitlines()
    assert len(rows) == 4
    starts = [i for i in range(len(rule)) if rule[i] == "-" and rule[i - 1 : i] in ("", " ")]
    assert all(row[i - 1] == " " for row in [head, *rows] for i in starts[1:] if i < len(row))
    for expected in (
        "7 of 800 (7 of 8) | 0 of 800",
        "0.660 (0.629–0.688)",
        "7.77 (7.56–8.00)",
        "9.9943 (at δ = 0.0005)",
    ):
        assert expected in rows[0] + rows[1]
    assert "–" in rows[2]
    assert head.endswith("epsilon")
    assert "not comparable" not in text


def test_table_says_when_the_data_differ(comparison):
    other = copy.deepcopy(comparison)
    other["data"]["members"] = 400
    text = table({"a": comparison, "b": other})
    assert "not comparable" in text.splitlines()[-1]
    assert "b: image_folder, 8 × 8 × 1: 400 members" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(10, "10"), (10.0, "10"), (9.9943, "9.9943"), (9.99430001, "9.99431"), (319.8, "319.8"), (0.1 + 0.2, "0.300001")],
)
def test_epsilons(value, expected):
    assert plain(value, "epsilon") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((None,), "–"), ((0.66041,), "0.660"), ((1.0,), "1.000"), ((7.7712,), "7.77"), ((0.5, 12.0), "0.5"),
        ((1234.5,), "1,234"), ((-0.1333,), "−0.133"), ((0.00123,), "0.00123"), ((0.0,), "0.000"),
    ],
)  # fmt: skip
def test_numbers(values, expected):
    assert number(*values) == expected


def test_numbers_of_the_json_are_not_changed_by_rendering(tmp_path, comparison):
    root = write(tmp_path, comparison)
    before = json.loads((root / "comparison.json").read_text())
    render(root, redact=True)
    assert json.loads((root / "comparison.json").read_text()) == before


def cost(seconds: float, images: int = 96_000, **changes: Any) -> dict[str, Any]:
    plain = {"peak_memory_mib": 812.4, "peak_gpu_memory_mib": None, "processes": 1, "resumed": False}
    return {"images": images, "seconds": seconds, **plain, **changes}


COVERED = ["samples", "predictions", "gradients"]
TRAINED_WITH = {"kind": "dp_sgd", "acts_on": "training", "covers": COVERED}
GUARD = {"kind": "reject_copies", "acts_on": "sampling", "covers": ["samples"]}


def guarded(comparison):
    """An arm with a guard of its samples, its own settings, and all costs; the access that attacks need."""
    needs = {"generate_and_filter": ["samples"], "nearest_distance": ["samples"], "blind": []}
    tally = {"samples": 2048, "drawn": 2300, "refused": 252, "black": 0}
    more = {
        "own": {"model": {"kind": "gan", "channels": 16, "start": "/srv/alice/weights"}, "train": {"lr": 0.002}},
        "mitigations": [{"kind": "reject_copies"}],
        "sampling": {"guards": ["reject_copies"], "refused": tally},
        "defences": [GUARD],
        "cost": {"train": cost(268.5), "samples": cost(9.5, 2048, peak_memory_mib=901.0, peak_gpu_memory_mib=77.0)},
    }
    comparison["arms"]["guarded"] = arm(3, 0.655, **more)
    comparison["arms"]["baseline"]["cost"] = {"train": cost(134.25), "samples": cost(8.0, 2048)}
    comparison["arms"]["dp"] |= {
        "cost": {"train": cost(50.0, resumed=True), "samples": None},
        "defences": [TRAINED_WITH],
    }
    for found in comparison["arms"].values():
        for name, report in found["attacks"].items():
            report["needs"] = needs.get(name, ["predictions"])
    comparison["pareto"] = fronts(comparison)


def test_table_of_arms_holds_privacy_quality_and_cost(tmp_path, comparison):
    guarded(comparison)
    shown = of_arms(comparison), of_costs(comparison)
    columns = {(column.group, column.title): column for part in shown for column in part.columns}
    assert [{group for group, _ in part.groups} for part in shown] == [
        {"training", "generate_and_filter", "loss", "quality", "proven"}, {"cost"}
    ]  # fmt: skip
    entries = {key: {arm: cell.inline for arm, cell in column.cells.items()} for key, column in columns.items()}
    assert entries["cost", "training"] == {
        "baseline": "1.00 × (134.2 s)", "dp": "50.0 s", "guarded": "2.00 × (268.5 s)"
    }  # fmt: skip
    assert "Resumed" in columns["cost", "training"].cells["dp"].note
    assert entries["cost", "sampling"]["guarded"] == "9.5 (252 of 2,300 refused)"
    assert entries["cost", "sampling"]["dp"] == "–"
    assert entries["cost", "images seen"]["baseline"] == "96,000"
    assert entries["cost", "memory"]["guarded"] == "901"
    assert entries["cost", "GPU memory"] == {"baseline": "–", "dp": "–", "guarded": "77"}
    assert ("loss", "balanced accuracy") not in columns
    page, text = rendered(write(tmp_path, comparison))
    for content in (page, text):
        assert "2.00 ×" in content
        assert "model gan; train lr 0.002; reject_copies" in content
        assert "gan channels 16 start /srv/alice/weights; " in content
    for content in rendered(tmp_path, redact=True):
        assert "gan channels 16; " in content
        assert "alice" not in content


def test_costs_stand_beside_the_figures_where_there_is_room(comparison):
    guarded(comparison)
    for arm in comparison["arms"].values():
        del arm["attacks"]["loss"]
    assert "cost" in [group for group, _ in of_arms(comparison).groups]
    assert not of_costs(comparison).columns


def test_prompted_extraction_has_its_headlines(comparison):
    report = comparison["arms"]["baseline"]["attacks"]["generate_and_filter"]
    report["estimates"] = {
        name: estimate(0.9, 0.8, 0.95, successes=9, trials=10)
        for name in ("recall", "precision", "false_positives", "extracted", "flagged")
    }
    titles = [column.title for column in of_arms(comparison).columns if column.group == "generate_and_filter"]
    assert titles == ["prompts flagged", "extracted", "planted", "false positives", "precision", "recall"]


def test_of_many_attacks_the_table_of_arms_holds_the_strongest(comparison):
    for found in comparison["arms"].values():
        found["attacks"] |= {"pia": membership("pia", 0.7), "sima": membership("sima", 0.6)}
    (column,) = [column for column in of_arms(comparison).columns if column.group == "membership"]
    assert column.cells["dp"].text == "0.700"
    assert "The largest of 3 attacks: pia" in column.cells["dp"].note


def test_page_says_what_each_defence_covers_and_how_it_was_attacked(tmp_path, comparison):
    guarded(comparison)
    page, text = rendered(write(tmp_path, comparison))
    assert "adaptive: past it, the network itself is asked by loss, canary_audit" in page
    assert "| guarded | reject_copies | sampling | samples | seen through it: generate_and_filter" in text
    assert "| dp | dp_sgd | training | samples, predictions, gradients |" in text
    assert page.count(">open<") == 2
    assert page.count(">covered<") == 4


@pytest.mark.parametrize(
    ("acts_on", "needs", "shadows", "expected"),
    [
        ("sampling", {"a": ["samples"]}, 0, "seen through it: a; not adaptive: no attack goes around it"),
        ("sampling", {"a": ["gradients", "shadows"]}, 8, "adaptive: past it, the network itself is asked by a"),
        ("training", {"a": ["predictions"]}, 0, "every attack is on the model that was trained with it; not adaptive"),
        ("data", {"a": ["predictions", "shadows"]}, 8, "adaptive: 8 shadow models trained with it teach a"),
        ("data", {"blind": []}, 0, "not attacked; not adaptive"),
        ("data", {f"a{i}": ["shadows"] for i in range(9)}, 8, "teach 9 attacks (a0, a1, …)"),
    ],
)
def test_how_a_defence_was_attacked(acts_on, needs, shadows, expected):
    arm = {"attacks": {name: {"needs": wanted} for name, wanted in needs.items()}}
    assert expected in attacked(acts_on, arm, shadows)


def test_what_a_mitigation_acts_on():
    from unmem.mitigations.dp_sgd import DPSGD
    from unmem.mitigations.early_stopping import EarlyStopping
    from unmem.mitigations.exact_duplicates import ExactDuplicates
    from unmem.mitigations.reject_copies import RejectCopies

    assert defence(RejectCopies(), "reject_copies") == GUARD
    assert defence(DPSGD(epsilon=1.0, delta=1e-5), "dp_sgd") == TRAINED_WITH
    assert defence(EarlyStopping(), "early_stopping")["acts_on"] == "training"
    assert defence(ExactDuplicates(), "exact_duplicates") == {
        "kind": "exact_duplicates", "acts_on": "data", "covers": COVERED
    }  # fmt: skip


def test_an_arms_own_settings_are_those_that_differ():
    recipe = {"model": {"kind": "unet", "layers": 1, "channels": [8]}, "train": {"lr": 1e-3, "batch": 8, "ema": 0.9}}
    same = {"model": dict(recipe["model"]), "train": dict(recipe["train"]), "mitigations": []}
    assert own_settings([], recipe) == own_settings(same, recipe) == own_settings(None, recipe) == {}
    other = {"model": {"kind": "unet", "layers": 2, "channels": [8]}, "train": {"lr": 1e-3, "batch": 8, "ema": 0.5}}
    assert own_settings(other, recipe) == {"model": {"layers": 2}, "train": {"ema": 0.5}}
    gan = {"model": {"kind": "gan", "layers": 1}, "train": {"lr": 1e-3, "batch": 8}}  # a GAN does not read ema
    assert own_settings(gan, recipe) == {"model": {"kind": "gan", "layers": 1}}


def placed(points: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]], better: str = "lower"):
    """A comparison of arms at these (value, low, high) of what leaks and of quality."""
    arms = {}
    for name, (leak, worth) in points.items():
        found = arm(0, 0.5)
        found["attacks"] = {"loss": membership("loss", 0.5)}
        found["attacks"]["loss"]["estimates"]["auc"] = estimate(*leak, members=8, nonmembers=8)
        found["quality"] = {"q": quality(1.0) | {"estimate": estimate(*worth, samples=8), "better": better}}
        arms[name] = found
    return {"arms": arms}


def test_pareto_front_of_known_answers():
    at = {
        "best": ((0.5, 0.48, 0.52), (5.0, 4.5, 5.5)),
        "surely_worse": ((0.6, 0.58, 0.62), (9.0, 8.5, 9.5)),
        "worse_by_chance": ((0.51, 0.49, 0.53), (5.2, 4.7, 5.7)),  # overlaps in both: cannot be told from the best
        "better_quality": ((0.6, 0.58, 0.62), (4.9, 4.4, 5.4)),  # leaks surely more, but is worth a little more
        "unmeasured": ((None, None, None), (1.0, 0.9, 1.1)),
    }
    (front,) = fronts(placed(at))
    assert front["front"] == ["best", "worse_by_chance", "better_quality"]
    assert front["dominated"] == {"surely_worse": ["best", "worse_by_chance", "better_quality"]}
    assert front["unplaced"] == ["unmeasured"]
    assert (front["attack"], front["figure"], front["measure"]) == ("loss", "auc", "q")
    (turned,) = fronts(placed(at, better="higher"))  # the same numbers, the other way round: more is better
    assert turned["front"] == ["best", "surely_worse", "worse_by_chance"]
    assert turned["dominated"] == {"better_quality": ["best", "surely_worse", "worse_by_chance"]}


def test_pareto_front_of_random_arms_agrees_with_the_definition_and_is_never_empty():
    rng = random.Random(3)

    def point():
        value, half = rng.choice([1.0, 2.0, 3.0, rng.uniform(0, 4)]), rng.uniform(0, 1)
        return value, value - half, value + half

    for _ in range(50):
        at = {f"a{i}": (point(), point()) for i in range(6)}
        (front,) = fronts(placed(at))
        for name, mine in at.items():
            over = [
                other
                for other, its in at.items()
                if any(its[i][2] < mine[i][1] and its[1 - i][0] <= mine[1 - i][0] for i in (0, 1))
            ]
            assert front["dominated"].get(name, []) == over
            assert (name in front["front"]) is not bool(over)
        assert front["front"]


def test_an_arm_without_an_interval_dominates_nobody_and_a_control_has_no_place():
    sure, worse = (1.0, 0.9, 1.1), (3.0, 2.9, 3.1)
    assert fronts(placed({"a": (sure, sure), "b": (worse, worse)}))[0]["front"] == ["a"]
    bare = (1.0, None, None)
    assert fronts(placed({"a": (bare, bare), "b": (worse, worse)}))[0]["front"] == ["a", "b"]
    comparison = placed({"a": (sure, sure), "b": (worse, worse)})
    comparison["arms"]["a"]["control"] = "copier"
    assert fronts(comparison)[0]["front"] == ["b"]
    assert fronts({"arms": {}}) == []


def test_page_says_and_shows_who_is_dominated(tmp_path, comparison):
    guarded(comparison)
    comparison["arms"]["guarded"]["quality"]["frechet"] = quality(11.0)
    comparison["pareto"] = fronts(comparison)
    page, text = rendered(write(tmp_path, comparison))
    assert RULE in page
    assert "| loss: AUC | frechet | dp | baseline (by dp), guarded (by dp) |" in text
    (figure,) = [figure for figure in figures(comparison) if figure.title == "loss against quality"]
    assert figure.svg.count("hollow") == 2 * 2  # bars and dot of two arms
    assert "Hollow: dominated." in figure.caption


def test_curves_by_samples_show_intervals_and_false_positives_at_ten_times(comparison):
    report = comparison["arms"]["baseline"]["attacks"]["generate_and_filter"]
    for point in report["samples_curve"]:
        point |= {"extracted_low": 0.0, "extracted_high": 9.0, "false_positives_low": 0.0, "false_positives_high": 1.0}
    report["estimates"]["false_positives_at_10x"] = estimate(0.001, 0.0, 0.02, successes=1, trials=800, found=0)
    del comparison["arms"]["dp"]
    (figure,) = [figure for figure in figures(comparison) if figure.title == "generate_and_filter by samples"]
    assert figure.svg.count(" band") == 1
    assert figure.svg.count(" further") == 2
    assert figure.svg.count("<circle") == 2
    assert figure.svg.count("dot c0 hollow") == 1


def test_attacks_that_differ_in_their_threshold_share_a_figure(comparison):
    for found in comparison["arms"].values():
        found["attacks"]["stricter"] = {**found["attacks"]["generate_and_filter"], "threshold": 0.3}
    titles = [figure.title for figure in figures(comparison)]
    assert titles.count("generate_and_filter, stricter by threshold") == 1
    (figure,) = [figure for figure in figures(comparison) if "by threshold" in figure.title]
    assert figure.svg.count('"line guide"') == 2


def test_several_extraction_attacks_are_told_apart(comparison):
    comparison["arms"]["dp"]["privacy"] = None
    assert "by generate_and_filter" not in " ".join(verdict(comparison))
    for found in comparison["arms"].values():
        for name, planted in (("laxer", 9), ("laxest", 30)):
            found["attacks"][name] = extraction(planted)
            found["attacks"][name]["estimates"]["false_positives"] = estimate(0.1, 0, 1, successes=planted, trials=800)
    text = " ".join(verdict(comparison))
    assert "9 of 800 training images can be extracted by laxer (9 of the 8 planted)" in text
    assert "Caution: in dp the extraction rule of laxest also matches 30 of 800 held-out images" in text
    titles = [column.title for column in of_arms(comparison).columns if column.group == "laxest"]
    assert titles == ["extracted", "false positives"]


def test_screens_have_a_table(tmp_path, comparison):
    found = {"auc_noise": estimate(0.91, 0.8, 0.97, flagged=4, others=60), "recall_noise[0.1]": estimate(
        0.75, 0.2, 0.99, successes=3, trials=4
    )}  # fmt: skip
    assert "Screens of prompts" not in rendered(write(tmp_path, comparison))[0]
    comparison["arms"]["dp"]["attacks"]["prompt_screen"] = {
        "kind": "prompt_screen", "type": "screens", "queries": 0, "estimates": found
    }  # fmt: skip
    for content in rendered(write(tmp_path, comparison)):
        assert "Screens of prompts" in content
        assert "recall noise 0.1" in content


def test_every_mitigation_acts_on_what_it_steps_into():
    ways = {
        "apply": {"data", "training"},
        "update_rule": {"training"},
        "sampling_rule": {"sampling"},
        "prompt_rule": {"sampling"},
    }
    for name, kind in kinds("unmem.mitigations").items():
        part = kind.load()
        found = defence(part, name)
        assert found["acts_on"] in set.intersection(*(acts for way, acts in ways.items() if hasattr(part, way)))
        assert (found["covers"] == ["samples"]) is (found["acts_on"] == "sampling")


def test_of_prompts_the_verdict_counts_those_that_were_asked(comparison):
    report = comparison["arms"]["dp"]["attacks"]["generate_and_filter"]
    report["estimates"]["flagged"] = estimate(0.2, 0.1, 0.3, successes=4, trials=20)
    report["estimates"]["extracted"] = estimate(0.3, 0.1, 0.6, successes=3, trials=10)
    comparison["arms"]["dp"]["privacy"] = None
    text = " ".join(verdict(comparison))
    assert "7 of 800 training images can be extracted" in text
    assert "3 of 10 training images that were asked for can be extracted" in text
    assert text.count("prompts give like images again and again") == text.count("4 of 20 prompts") == 1
