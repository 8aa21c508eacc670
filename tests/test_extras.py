"""What an installation without the optional packages is told."""

import sys
from typing import Any

import pytest

from nanochat.data import hub
from nanochat.data.tasks import common
from nanochat.data.text_decoding import TextReading
from nanochat.server.app import create_app
from nanochat.stages import chat_web
from nanochat.system import config, wandb_run
from nanochat.system.errors import UserError

UNUSED: Any = None


def stream_from_the_hub() -> None:
    next(hub.hub_documents(hub.parse_name("hf:org/name"), TextReading()))


def serve() -> None:
    cfg = config.parse(chat_web.ChatWebConfig, [], stage="chat_web")
    chat_web.serve(cfg, UNUSED, {"m": UNUSED})


CASES = {
    "wandb": ("wandb", "wandb", lambda: wandb_run.log_in("p")),
    "task": ("datasets", "hub", lambda: common.load_rows("org/name", split="train")),
    "text": ("datasets", "hub", stream_from_the_hub),
    "app": ("fastapi", "serve", lambda: create_app(UNUSED)),
    "chat_web": ("uvicorn", "serve", serve),
}


@pytest.mark.parametrize("case", CASES)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(case, monkeypatch):
    package, extra, use = CASES[case]
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises ImportError
    with pytest.raises(UserError) as caught:
        use()
    assert package in str(caught.value)
    assert f"pip install 'nanochat[{extra}]'" in str(caught.value)
