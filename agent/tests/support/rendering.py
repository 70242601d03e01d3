"""The agent file as the operator ships it: with the ledger's script (common.lua, then call.lua) put in."""

import importlib.util
import sys
from pathlib import Path

AGENT = Path(__file__).resolve().parents[2] / "tokenbudget_agent.py"
SCRIPTS = Path(__file__).resolve().parents[3] / "src" / "ledger" / "scripts"


def call_script() -> str:
    """The text that Redis runs."""
    return "\n".join((SCRIPTS / name).read_text() for name in ("common.lua", "call.lua"))


def rendered() -> str:
    """The file's text with the script in place of its marker."""
    text = AGENT.read_text()
    assert text.count("@CALL_LUA@") == 1, "the agent file must carry the marker exactly once"
    return text.replace("@CALL_LUA@", call_script())


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
