"""One module reads model files. No other may hold a reader that can run code (HARDENING.md T1, T13)."""

from __future__ import annotations

import ast
from pathlib import Path

import tl_audit

PACKAGE = Path(tl_audit.__file__).parent
READER = PACKAGE / "models" / "weights.py"
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "pickletools"}
FORBIDDEN_CALLS = {"torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle"}


def faults(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] if node.module.split(".")[0] in FORBIDDEN_MODULES else []
            found += [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS or name.endswith((".extractall", ".unpack_archive")):
                found.append(name)
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                    found.append(f"{name}(allow_pickle=...)")
                if keyword.arg == "weights_only" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is True):
                    found.append(f"{name}(weights_only=...)")
    return found


def test_no_reader_that_can_run_code_stands_outside_the_one_module():
    found = {str(path.relative_to(PACKAGE)): faults(path.read_text()) for path in sorted(PACKAGE.rglob("*.py")) if path != READER}
    assert {name: what for name, what in found.items() if what} == {}


def test_the_one_module_asks_for_weights_only_at_every_load():
    calls = [
        node for node in ast.walk(ast.parse(READER.read_text())) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    for call in calls:
        assert {k.arg: ast.unparse(k.value) for k in call.keywords}["weights_only"] == "True"
    assert "pickle" not in {a.name for n in ast.walk(ast.parse(READER.read_text())) if isinstance(n, ast.Import) for a in n.names}


def test_the_lint_itself_finds_what_it_looks_for():
    bad = "import pickle\nfrom joblib import load\ntorch.load(f, weights_only=False)\nnp.load(f, allow_pickle=True)\nz.extractall()\ntorch.hub.load('x')"
    assert faults(bad) == [
        "pickle",
        "joblib",
        "torch.load",
        "torch.load(weights_only=...)",
        "np.load(allow_pickle=...)",
        "z.extractall",
        "torch.hub.load",
    ]
