"""Fixed words of the report: legend of statuses, glossary, notes on method. Printed in §N."""

from __future__ import annotations

__all__ = ["GLOSSARY", "LEGEND", "METHODS"]

LEGEND: tuple[tuple[str, str], ...] = (
    ("pass", "failure is excluded and nothing points beyond the warning limit; the bound is printed"),
    ("warn", "the whole interval is beyond the warning limit"),
    ("fail", "the whole interval is beyond the limit"),
    ("inconclusive", "the samples cannot exclude failure; k more would settle it"),
    ("review", "a person must answer"),
    ("info", "measured; the policy sets no limit"),
    ("not_evaluated", "an input is missing or the check was deselected"),
    ("error", "the check broke; nothing is known"),
)

METHODS: tuple[tuple[str, str], ...] = (
    (
        "How a limit is judged",
        "A limit is held against an interval, not against a point. It is broken when the whole interval lies beyond it, met when the whole "
        "interval lies on the good side, and undecided otherwise. One broken fail limit makes a finding fail; one broken warning limit makes it warn; "
        "an undecided fail limit makes it inconclusive.",
    ),
    (
        "Effect and significance",
        "Some statistics have no sound interval. Their limits are broken only when the effect lies beyond the limit and the adjusted p is small. "
        "Neither a small p alone nor a large effect alone breaks a limit.",
    ),
    (
        "How many more samples",
        "For an undecided limit the report says how many more units would settle it in four of five repetitions if the truth equals the estimate. "
        "The figure assumes that the width of the interval shrinks with the square root of n.",
    ),
    (
        "Many questions",
        "Where one check asks the same question of many slices, p values are adjusted inside that check (Holm, or Benjamini-Hochberg for exploratory lists).",
    ),
    (
        "Clusters",
        "Where samples belong to clusters (patients, sites, documents), clusters and not rows are the units of intervals and of permutations. "
        "The number of clusters stands beside n.",
    ),
    (
        "Paired comparison",
        "Two models are compared on the same samples, and the interval is that of the difference. Whether two single intervals overlap answers another question.",
    ),
    (
        "Small cells",
        "Group cells with fewer samples than the policy's minimum are written “< 10” and everything computed from them is withheld as suppressed.",
    ),
    (
        "Maps of attribution",
        "A map shows how much each part of the input moved one output. Its stamp says whether the method passed its quality checks on this model. "
        "A map that did not pass may not be used as evidence.",
    ),
    (
        "Rounding",
        "Numbers are rounded to the first significant digit of the half-width of their interval, at most four decimals, and one more where rounding would move them across a limit.",
    ),
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("adapted model", "the model after it was trained further on the target data"),
    ("adjusted p", "chance of a result at least this strong without any effect, corrected for asking many questions"),
    ("attribution", "map of how much each part of the input moved this output; not a reason"),
    ("base model", "the model before it was trained further on the target data"),
    ("calibration, ECE", "whether “80 % sure” is right 80 % of the time; the average miss"),
    ("chance value (null)", "what the number would be if there were no effect at all"),
    ("CKA", "likeness of what a layer computes before and after, 1 = same; CKA drift is 1 minus that"),
    ("control", "a simpler training on the same data, to see whether the adaptation was worth it"),
    ("forgetting", "the adapted model lost skill on the source"),
    ("gradient activity", "how strongly training pulls at a layer, relative to its weights"),
    ("group gap", "difference of a rate between a group and the rest"),
    ("inconclusive", "the data cannot say on which side of the limit the truth lies"),
    ("interval (95 % CI)", "a range made so that, over 100 such samples, about 95 of the ranges hold the true value"),
    ("limit, policy", "a bound set before the run; the file with all bounds, reasons and approvals"),
    ("negative transfer", "the adapted model does worse than a control that never used the base"),
    ("noise floor", "how much a map changes when only the random seed changes"),
    ("shift", "the target data differ from the source data: in inputs, class mix, look of a class, or meaning of a class"),
    ("source, target", "the data world the base comes from; the one the adapted model works in"),
    ("suppressed", "hidden because fewer than ten people or samples stand behind it"),
    ("waiver", "a dated, signed permission to release in spite of a fail; the fail stays visible"),
)
