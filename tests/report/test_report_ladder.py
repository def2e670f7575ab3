"""The page shows one layer ladder: gradient, weights and features of a layer in one row, whichever checks measured them."""

from __future__ import annotations

from tl_audit.records.exhibits import Ladder, LadderRow
from tl_audit.records.findings import Finding
from tl_audit.records.metrics import Measurement
from tl_audit.report.page import _with_one_ladder


def finding(code: str, *rows: LadderRow) -> Finding:
    ladder = Ladder(id="ladder", title=f"Title {code}", how_to_read="read", alt=f"Alt {code}", caption=f"Caption {code}.", rows=rows)
    measurement = Measurement(summary="s", metrics=(), exhibits=(ladder,))
    return Finding(
        code=code, section="provenance", title=code, status="info", reason="no limit", severity="info", measurement=measurement, help={}
    )


def row(layer: str, **values: float) -> LadderRow:
    return LadderRow(layer=layer, parameters=3, state="trained", **values)


def ladders(findings: list[Finding]) -> list[tuple[str, Ladder]]:
    return [(f.code, e) for f in findings if f.measurement is not None for e in f.measurement.exhibits if isinstance(e, Ladder)]


def test_the_rows_of_all_ladders_are_joined_by_layer_and_nothing_measured_is_lost():
    given = [
        finding(
            "TLA105", row("a", gradient_activity=0.5, weight_change=0.1), row("b", gradient_activity=0.2), row("c", gradient_activity=0.0)
        ),
        finding("TLA403", row("b", cka_drift=0.3), row("a", cka_drift=0.7, weight_change=0.1)),
    ]
    ((code, joined),) = ladders(_with_one_ladder(given))
    assert code == "TLA403"
    assert [r.layer for r in joined.rows] == ["a", "b", "c"]
    a, b, c = joined.rows
    assert (a.gradient_activity, a.weight_change, a.cka_drift) == (0.5, 0.1, 0.7)
    assert (b.gradient_activity, b.weight_change, b.cka_drift) == (0.2, None, 0.3)
    assert (c.gradient_activity, c.cka_drift) == (0.0, None)
    assert joined.caption == "TLA105: Caption TLA105. TLA403: Caption TLA403."
    assert len(ladders(given)) == 2, "the record itself is left as it is"


def test_a_single_ladder_is_shown_as_it_is():
    given = [finding("TLA403", row("a", cka_drift=0.7))]
    assert _with_one_ladder(given) == given
