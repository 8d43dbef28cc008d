"""Each claim of the front page has a small picture, drawn from today's results."""

import re

import pytest

from benchmarks.pictures import CLAIMS, IMAGES, digest, draw, panels

from .test_claims import FRONT, LINK, claims


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_picture_is_of_the_committed_results(claim):
    text = (IMAGES / f"{claim}.svg").read_text()
    stale = "run `python -m benchmarks.pictures`: the results have changed"
    assert digest(panels(claim)) in text, stale
    assert len(text) < 40_000
    assert f"](images/claims/{claim}.svg)" in FRONT


def test_each_claim_has_its_picture():
    drawn = [list(names) for names, _ in CLAIMS.values()]
    assert [LINK.findall(row) for row in claims(FRONT)] == drawn
    shown = re.findall(r"images/claims/(\w+)\.svg", FRONT)
    assert shown == list(CLAIMS)
    assert {path.stem for path in IMAGES.glob("*")} == set(CLAIMS)


def test_a_picture_has_units_and_names(tmp_path):
    draw("plane", tmp_path / "plane.svg")
    text = (tmp_path / "plane.svg").read_text()
    for words in ("exact KL, nats", "training, seconds", "PCD, minsr"):
        assert words in text
