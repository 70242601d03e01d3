"""The agent file as the operator ships it: the parts in agent/src, joined, with the ledger's script put
in (common.lua, then call.lua). A test of src/litellm/agent.rs holds it to that text."""

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "src" / "ledger" / "scripts"
ORDER = re.compile(r'include_str!\("\.\./\.\./(agent/src/\w+\.py)"\)')
BETWEEN = re.compile(r"^from (\.|__future__)[^(\n]*(\([^)]*\))?\n", re.MULTILINE)


def call_script() -> str:
    """The text that Redis runs."""
    return "".join((SCRIPTS / name).read_text() for name in ("common.lua", "call.lua"))


def rendered() -> str:
    """The file's text with the script in place of its marker."""
    order = ORDER.findall((ROOT / "src" / "litellm" / "agent.rs").read_text())
    first, *others = [(ROOT / part).read_text() for part in order]
    assert first.count("@CALL_LUA@") == 1, "the first part must carry the marker exactly once"
    first = first.replace("@CALL_LUA@", call_script())
    return "\n\n".join([first, *(BETWEEN.sub("", part) for part in others)])


def write(directory: Path) -> Path:
    """Puts the rendered file into a directory."""
    path = Path(directory) / "tokenbudget_agent.py"
    path.write_text(rendered())
    return path


def load(path: Path):
    """Imports a rendered file."""
    spec = importlib.util.spec_from_file_location("tokenbudget_agent", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokenbudget_agent"] = module
    spec.loader.exec_module(module)
    return module
