"""The rehearsal of the speedrun: what its parts do, and a small one from start to end."""

import pytest

from nanochat.evaluation import core_bundle
from nanochat.stages import base_eval
from nanochat.system import distributed
from tests.node_helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def parts(monkeypatch):
    """The modules of the rehearsal's server."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rehearsal_data
    import rehearsal_server

    return rehearsal_data, rehearsal_server


def test_the_bundle_comes_from_the_mirror_if_one_is_set(parts, tmp_path, monkeypatch):
    data, server = parts
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    hub = server.Hub({}, data.mirror_files())
    with server.serve(hub) as url:
        monkeypatch.setenv("NANOCHAT_MIRROR", f"{url}/mirror/")
        folder = base_eval.open_bundle("core", distributed.single_run())
    assert len(core_bundle.read_bundle(folder)) == 22
    assert [line.split()[1] for line in hub.requests] == ["/mirror/eval_bundle.zip"]
