"""Records: frozen, typed data that travels. They know nothing of models, policies or pages.

metrics      Metric, Measurement
exhibits     Table, Bars, Lines, Heatmap, ImageGrid, Intervals, Ladder: the data of one table or figure
findings     LimitOutcome, Finding, subject/domain/model/policy cards, Outcome, AuditResult
adaptation   AdaptationRecord: how an adapted model was made
preprocessing Preprocessing (images), TableEncoding (tables): how raw samples become inputs
schema       report.json: write, load, upgrade, hashes, JSON Schema
"""
