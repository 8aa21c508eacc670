"""/openapi.json says what the server accepts: schemathesis makes requests from it, valid and not.

More of them, some 10,000, with every value at its bounds:

NANOCHAT_FUZZ_EXAMPLES=1000 pytest tests/test_server_schema.py
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from nanochat.engine import Engine
from nanochat.server.app import create_app
from tests.engine_helpers import TOKENIZER, ScriptedModel
from tests.server_helpers import call, listening, serving

EXAMPLES = os.environ.get("NANOCHAT_FUZZ_EXAMPLES")
BELOW_265 = "^(0|[1-9][0-9]?|1[0-9][0-9]|2[0-5][0-9]|26[0-4])$"


def narrow(schemas: dict[str, Any]) -> None:
    """Add to the schemas what depends on this server: its model, vocabulary and grammars."""
    token = {"type": "integer", "minimum": 0, "maximum": TOKENIZER.vocab_size - 1}
    for name in ("ChatRequest", "TextRequest", "TokenizeRequest", "DetokenizeRequest"):
        schemas[name]["properties"]["model"] = {"enum": ["m", None]}
    schemas["DetokenizeRequest"]["properties"]["tokens"]["items"] = token
    chat, text = schemas["ChatRequest"]["properties"], schemas["TextRequest"]["properties"]
    for kind in text["prompt"]["anyOf"]:
        for part in (kind, kind.get("items", {})):
            if part.get("items", {}).get("type") == "integer":
                part["items"] = token
    for fields in (chat, text):
        bias = {"type": "number", "minimum": -100, "maximum": 100}
        biases = {"patternProperties": {BELOW_265: bias}, "additionalProperties": False}
        fields["logit_bias"] = {"anyOf": [{"type": "object", **biases}, {"type": "null"}]}
    # Which of these fit together is beyond a schema; tests of their own cover them.
    chat["tools"], chat["tool_choice"] = {"enum": [[], None]}, {"enum": ["none", "auto", None]}
    chat["response_format"] = {"enum": [{"type": "text"}, None]}
    for fields in (chat, schemas["TokenizeRequest"]["properties"]):
        messages = fields["messages"]
        messages = messages["anyOf"][0] if "anyOf" in messages else messages
        for kind in messages["items"]["anyOf"]:
            kind["properties"].pop("tool_calls", None)
        messages["items"]["anyOf"].pop()  # role tool


@pytest.mark.slow
def test_valid_requests_are_answered_and_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemathesis = pytest.importorskip("schemathesis.cli")
    monkeypatch.chdir(tmp_path)  # it keeps what it found in the current folder
    from click.testing import CliRunner

    model = ScriptedModel(lambda text: TOKENIZER.bos_id, sequence_length=4096)  # ends at once
    engine = Engine(model, TOKENIZER, slots=4)  # type: ignore[arg-type]
    with serving(engine) as service:
        app = create_app({"m": service})
        raw = call(app, ("GET", "/openapi.json", None))[0].json()
        narrow(raw["components"]["schemas"])
        path = tmp_path / "openapi.json"
        path.write_text(json.dumps(raw), encoding="utf-8")
        with listening(app) as url:
            args = ["run", str(path), "--url", url, "--seed", "1"]
            args += ["-n", EXAMPLES] if EXAMPLES else ["-n", "10", "--phases", "fuzzing"]
            done = CliRunner().invoke(schemathesis.schemathesis, args)
    assert done.exit_code == 0, done.output
    made = re.search(r"Test cases:\s+(\d[\d,]*) generated", done.output)
    assert made and int(made[1].replace(",", "")) > 50
