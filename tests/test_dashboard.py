"""The runs dashboard: reading runs while they are written, its routes, and the page."""

import asyncio
import fcntl
import itertools
import json
import os
import subprocess
import sys
from array import array
from xml.etree import ElementTree

import httpx
import pytest

from nanochat import report
from nanochat.report import curves, runs
from nanochat.server.access import Access
from nanochat.server.app import create_app
from nanochat.server.runs import STATIC, create_dashboard
from nanochat.system.errors import DataError
from tests.browser import chromium, serving


def write(path, *rows, end="\n"):
    """Append rows to a file of JSON lines; texts are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    with path.open("a") as file:
        file.write("\n".join(lines) + end)


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def points(reading):
    return {key: (list(c.steps), list(c.values)) for key, c in reading.curves.items()}


def only(found):
    [item] = found
    return item


# --- curves


def test_each_metric_is_a_curve_over_its_own_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 1, "loss": 6.5, "mfu": None}, {"step": 10, "loss": 4})
    write(path, {"step": 10, "val_bpb": 1.25})
    assert points(curves.read(path)) == {"loss": ([1, 10], [6.5, 4]), "val_bpb": ([10], [1.25])}


def test_reading_goes_on_where_it_ended_and_waits_for_the_end_of_a_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 1, "loss": 3}, '{"step": 2, "lo', end="")
    first = curves.read(path)
    assert points(first) == {"loss": ([1], [3])}
    write(path, 'ss": 2.5}')
    second = curves.read(path, file=first.file, start=first.end)
    assert (second.start, points(second)) == (first.end, {"loss": ([2], [2.5])})
    assert second.end == path.stat().st_size
    again = curves.read(path, file=second.file, start=second.end)
    assert (again.end, again.curves) == (second.end, {})


def test_rows_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rubbish = ["[1]", "", "{", "\udcff", '{"step": true, "loss": 1}', '{"step": -1, "loss": 1}']
    rubbish += ['{"loss": 1}', '{"step": 1e300, "loss": 1}', '{"step": "1", "loss": 1}', "[" * 9999]
    path.write_bytes(("\n".join(rubbish) + "\n").encode("utf-8", "surrogateescape"))
    write(path, '{"step": 3, "loss": NaN, "grad_norm": 1e999, "lr_scale": "x", "reward": 0.5}')
    assert points(curves.read(path)) == {"reward": ([3], [0.5])}


def test_the_later_row_of_a_step_counts_and_going_back_voids_what_followed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(
        path, *({"step": step, "loss": step} for step in (10, 20, 30)), {"step": 30, "val_bpb": 1}
    )
    write(path, {"step": 20, "loss": 2.5})
    assert points(curves.read(path)) == {"loss": ([10, 20], [10, 2.5]), "val_bpb": ([], [])}


def test_a_file_that_was_replaced_or_cut_is_read_from_its_start(tmp_path):
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    write(path, {"step": 1, "loss": 3}, {"step": 2, "loss": 2})
    before = curves.read(path)
    write(other, {"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 3, "loss": 1})
    other.replace(path)
    after = curves.read(path, file=before.file, start=before.end)
    assert (after.start, points(after)) == (0, {"loss": ([1, 2, 3], [3, 2, 1])})
    path.write_text('{"step": 1, "loss": 3}\n')
    cut = curves.read(path, file=after.file, start=after.end)
    assert (cut.start, points(cut)) == (0, {"loss": ([1], [3])})


def test_a_long_curve_keeps_its_spikes_and_a_range_of_it_every_point(tmp_path):
    path = tmp_path / "metrics.jsonl"
    losses = [2 - step / 10_000 for step in range(9_000)]
    losses[4_321], losses[7_654] = 50.0, -50.0
    write(path, *({"step": step, "loss": loss} for step, loss in enumerate(losses)))
    whole = curves.read(path, most=200)
    steps, values = points(whole)["loss"]
    assert whole.thinned and len(steps) <= 200
    assert (steps[0], steps[-1], steps == sorted(steps)) == (0, 8_999, True)
    assert {4_321, 7_654} <= set(steps) and {50.0, -50.0} <= set(values)
    part = curves.read(path, most=200, steps=(4_300, 4_399))
    assert points(part)["loss"] == ([*range(4_300, 4_400)], losses[4_300:4_400])
    assert not part.thinned


def test_thinning_leaves_short_curves_alone():
    curve = curves.Curve(array("d", [1, 2]), array("d", [5, 6]))
    assert curves.thinned(curve, 2) is curve


def test_the_end_of_a_file_tells_the_last_values_and_the_speed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 200):
        write(path, {"step": step, "tokens": 100 * step, "elapsed_s": step / 4, "loss": 1 / step})
    write(path, {"step": 199, "val_bpb": 0.75}, '{"step": 200', end="")
    tail = curves.tail(path, size=2_000)
    assert (tail.step, tail.tokens_per_s) == (199, 400)
    assert tail.values == {"tokens": 19_900, "elapsed_s": 49.75, "loss": 1 / 199, "val_bpb": 0.75}


# --- runs


@pytest.fixture
def folder(tmp_path):
    """Runs: "small" is done with two stages, "big" stopped at step 2 of 4."""
    found = tmp_path / "runs"
    small = found / "small" / "base_train"
    settings = {"options": {"seed": 1, "depth": 4}, "steps": 2, "parameters": 4_000_000}
    put(small / "config.json", settings)
    write(small / "metrics.jsonl", {"step": 2, "tokens": 8, "loss": 1.5, "elapsed_s": 1.0})
    samples = [{"prompt": "The sky", "text": " is blue"}]
    results = [{"name": "sums", "value": 0.75, "stderr": 0.1, "n": 20, "unit": "accuracy"}]
    put(small / "result.json", {"samples": samples, "results": results, "settings": {"steps": 2}})
    put(found / "small" / "tok_train" / "result.json", {"seconds": 2.0})
    big = found / "big" / "base_train"
    put(big / "config.json", {**settings, "options": {"seed": 1, "depth": 8}, "steps": 4})
    write(big / "metrics.jsonl", {"step": 1, "loss": 3}, {"step": 2, "loss": 2})
    put(big / ".lock", "")
    for path in (*small.iterdir(), *small.parent.glob("tok_train/*")):
        os.utime(path, (2_000, 2_000))
    for path in big.iterdir():
        os.utime(path, (1_000, 1_000))
    return found


def states(folder):
    return {run["name"]: run["state"] for run in runs.overview(folder)}


def test_the_overview_lists_runs_newest_first_with_stages_in_their_order(folder):
    small, big = runs.overview(folder)
    assert [(s["name"], s["state"]) for s in small["stages"]] == [
        ("tok_train", "done"),
        ("base_train", "done"),
    ]
    assert (small["name"], small["state"], small["modified"]) == ("small", "done", 2_000)
    stage = only(big["stages"])
    assert (stage["state"], stage["step"], stage["steps"], stage["last"]) == (
        "stopped",
        2,
        4,
        {"loss": 2},
    )


def test_there_are_no_runs_without_the_folder(tmp_path):
    assert runs.overview(tmp_path / "runs") == []


@pytest.mark.skipif(not runs.LOCKS.exists(), reason="the system does not list its locks")
def test_a_stage_runs_while_a_process_holds_its_lock(folder):
    with (folder / "big" / "base_train" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.name, (1_000, 1_000))
        assert states(folder) == {"small": "done", "big": "running"}
    assert states(folder) == {"small": "done", "big": "stopped"}


def test_where_no_lock_is_seen_a_fresh_row_tells_that_a_stage_runs(folder, monkeypatch, tmp_path):
    metrics = folder / "big" / "base_train" / "metrics.jsonl"
    monkeypatch.setattr(runs, "LOCKS", tmp_path / "none")
    now = metrics.stat().st_mtime
    monkeypatch.setattr(runs.time, "time", lambda: now + runs.FRESH_UNSEEN_S - 1)
    assert states(folder)["big"] == "running"
    monkeypatch.setattr(runs.time, "time", lambda: now + runs.FRESH_UNSEEN_S + 1)
    assert states(folder)["big"] == "stopped"


def test_a_growing_file_changes_the_step_and_a_result_the_version(folder):
    stage = folder / "big" / "base_train"
    before = runs.overview(folder)[1]
    write(stage / "metrics.jsonl", {"step": 3, "loss": 1})
    grown = next(run for run in runs.overview(folder) if run["name"] == "big")
    assert (only(grown["stages"])["step"], grown["version"]) == (3, before["version"])
    put(stage / "result.json", {"results": []})
    done = next(run for run in runs.overview(folder) if run["name"] == "big")
    assert done["state"] == "done" and done["version"] != before["version"]


def test_details_have_what_the_stages_recorded(folder):
    found = runs.details(folder / "small")
    stage = found["stages"][1]
    assert (found["name"], stage["title"], stage["series"]) == ("small", "Base training", "base")
    assert stage["settings"] == {
        "parameters": "4,000,000",
        "steps": "2",
        "seed": "1",
        "depth": "4",
    }
    result = {"name": "sums", "value": 0.75, "stderr": 0.1, "n": 20, "unit": "accuracy"}
    assert stage["results"] == [{**result, "series": "base"}]
    turns = [{"role": "assistant", "text": " is blue"}]
    sample = {"step": 2, "series": "base", "group": "", "prompt": "The sky", "turns": turns}
    assert stage["samples"] == [sample]


def test_samples_of_earlier_steps_come_first_and_the_last_ones_once(folder):
    stage = folder / "small" / "base_train"
    for step, text in ((1, " the the"), (2, " is")):
        report.record_samples(stage, step, [{"prompt": "The sky", "text": text}])
    write(stage / "samples.jsonl", '{"step": 3, "sam', end="")  # killed, and started again
    report.record_samples(stage, 2, [{"prompt": "The sky", "text": " is blue"}])
    found = runs.details(folder / "small")["stages"][1]["samples"]
    assert [(s["step"], s["turns"][0]["text"]) for s in found] == [(1, " the the"), (2, " is blue")]


def test_of_many_samples_evenly_spread_ones_and_the_last_are_kept(folder):
    stage = folder / "big" / "base_train"
    for step in range(1, 1_000):
        report.record_samples(stage, step, [{"prompt": "", "text": str(step)}])
    steps = [s["step"] for s in runs.details(folder / "big")["stages"][0]["samples"]]
    assert runs.MAX_SNAPSHOTS < len(steps) <= 2 * runs.MAX_SNAPSHOTS + 1
    gaps = {b - a for a, b in itertools.pairwise(steps[:-1])}
    assert (steps[0], steps[-1], len(gaps)) == (1, 999, 1)


RUBBISH = ["[]", "{", ""]
RUBBISH += ['{"results": 1, "samples": [1, {"prompt": 1}], "settings": [1], "notes": {}}']
RUBBISH += ['{"results": [1, {"value": 1}, {"name": 2, "value": 1}], "stage": [], "steps": "x"}']
RUBBISH += ['{"options": [1], "model": 3, "samples": [{"prompt": "a", "turns": [1, {"text": 2}]}]}']


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_in_a_run_is_left_out(folder, text):
    for name in ("config.json", "result.json", "samples.jsonl", "metrics.jsonl"):
        put(folder / "odd" / "base_train" / name, text)
    run = next(run for run in runs.overview(folder) if run["name"] == "odd")
    assert only(run["stages"])["last"] == {}
    stage = only(runs.details(folder / "odd")["stages"])
    assert (stage["results"], stage["samples"], stage["notes"]) == ([], [], [])


def test_only_plain_files_inside_the_folder_are_read(folder, tmp_path):
    secret = tmp_path / "elsewhere" / "base_train"
    write(secret / "metrics.jsonl", {"step": 1, "loss": 42})
    (folder / "outside").symlink_to(secret.parent)
    (folder / "alias").symlink_to(folder / "small")
    stage = folder / "odd" / "base_train"
    put(stage / "config.json", {})
    (stage / "metrics.jsonl").symlink_to(secret / "metrics.jsonl")
    os.mkfifo(stage / "result.json")
    put(folder / "a file", "")
    put(folder / ".hidden" / "base_train" / "config.json", {})
    assert {run["name"] for run in runs.overview(folder)} == {"small", "big", "alias", "odd"}
    with pytest.raises(DataError, match="base_train has no metrics"):
        runs.metrics_file(runs.find(folder, "odd", "base_train"))
    for name in ("outside", "..", ".", "", "small/base_train", ".hidden", "a file", "no", "a\0b"):
        with pytest.raises(DataError, match="there is no run"):
            runs.find(folder, name)
    with pytest.raises(DataError, match=r"there is no stage '\.\.'"):
        runs.find(folder, "small", "..")


# --- routes


def getter(app):
    """get(path): an application's response, asked in this process."""

    async def ask(path, host):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.get(path)

    return lambda path, host="localhost": asyncio.run(ask(path, host))


@pytest.fixture
def get(folder):
    """get(path): the response of the dashboard."""
    return getter(create_dashboard(folder, Access(hosts=())))


def test_the_dashboard_shows_its_page_and_the_runs(get, folder):
    assert get("/").headers["location"] == "/runs"
    page = get("/runs")
    assert page.status_code == 200 and "<title>Runs · nanochat</title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/dashboard/runs.js", "/dashboard/runs.css", "/shared/theme.js", "/icon.svg"):
        assert get(path).status_code == 200, path
    found = get("/runs/api").json()
    assert [run["name"] for run in found["runs"]] == ["small", "big"]
    assert (found["chat"], found["folder"]) == (False, str(folder))
    assert get("/runs/api/big").json()["name"] == "big"


def test_the_chat_server_shows_the_same_page_with_a_link_to_the_chat(folder):
    get = getter(create_app({"small": None}, runs_folder=folder))
    assert get("/runs").text == (STATIC / "runs.html").read_text(encoding="utf-8")
    assert get("/runs/api").json()["chat"] is True
    assert get("/runs/api/big/base_train").json()["curves"]["loss"] == [[1, 2], [3.0, 2.0]]
    policies = get("/runs/report/small").headers.get_list("content-security-policy")
    assert only(policies).startswith("default-src 'none'")
    assert get("/runs/api/no").status_code == 404
    assert getter(create_app({"small": None}))("/runs/api").status_code == 404


def test_curves_are_given_from_a_position_and_in_a_range(get):
    whole = get("/runs/api/big/base_train").json()
    assert whole["curves"] == {"loss": [[1, 2], [3.0, 2.0]]}
    position = f"file={whole['file']}&from={whole['end']}"
    assert get(f"/runs/api/big/base_train?{position}").json()["curves"] == {}
    part = get("/runs/api/big/base_train?first=2&last=9").json()
    assert part["curves"] == {"loss": [[2], [2.0]]}
    assert get("/runs/api/big/base_train?from=x&first=-1&last=").json() == whole


def test_a_report_has_a_policy_of_its_own_and_no_scripts(get):
    found = get("/runs/report/small")
    assert found.status_code == 200 and "nanochat training report" in found.text
    policies = found.headers.get_list("content-security-policy")
    assert only(policies).startswith("default-src 'none'") and "sandbox" in policies[0]


@pytest.mark.parametrize(
    "path",
    ["no", "..%2f..", "%2e%2e", "small/no", "small/..%2fsmall", "small/tok_train", "%00", "a%0Ab"],
)
def test_names_that_are_no_run_are_not_found(get, path):
    found = get(f"/runs/api/{path}")
    assert found.status_code == 404 and "root:" not in found.text


def test_a_page_of_another_name_reads_nothing(get):
    assert get("/runs/api", host="evil.example").status_code == 403


def test_the_command_starts_without_slow_imports(tmp_path):
    code = (
        "import sys; from nanochat.stages import dashboard as d\n"
        "slow = {'torch', 'fastapi', 'numpy'}\n"
        "d.listen = lambda address: print(*sorted(slow & set(sys.modules))) or sys.exit()\n"
        "d.main(['--port', '0'])"
    )
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


# --- the page


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, folder):
    """The page with both runs, of which "big" is running; errors it logs fail the test."""
    problems = []
    lock = (folder / "big" / "base_train" / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with lock, serving(create_dashboard(folder, Access())) as address:
        page = browser.new_page(accept_downloads=True)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        page.goto(f"{address}/runs?run=big&run=small")
        page.locator(".plot .line").first.wait_for()
        yield page
        page.close()
    assert problems == []


def test_a_row_that_training_writes_appears_without_a_reload(page, folder):
    stage = folder / "big" / "base_train"
    loss = page.locator(".plot").first
    assert loss.locator(".values").inner_text().split() == ["big", "2", "small", "1.5"]
    page.evaluate("document.querySelector('.plot .line').marked = true")
    write(stage / "metrics.jsonl", {"step": 3, "loss": 1.25, "tokens": 12, "elapsed_s": 2.0})
    report.record_samples(stage, 3, [{"prompt": "The sky", "text": " is green"}])
    loss.get_by_text("1.25", exact=True).wait_for()
    page.get_by_text("Base training: step 3 of 4").wait_for()
    page.get_by_text("is green").wait_for()
    assert page.evaluate("document.querySelector('.plot .line').marked")  # it was not redrawn


@pytest.mark.parametrize("kind", ["PNG", "SVG", "CSV"])
def test_a_plot_is_saved_as_picture_and_as_data(page, tmp_path, kind):
    figure = page.locator(".plot").first
    figure.locator("summary").click()
    with page.expect_download() as started:
        figure.get_by_role("button", name=kind).click()
    assert started.value.suggested_filename == f"big-small-base_train-loss.{kind.lower()}"
    saved = tmp_path / "saved"
    started.value.save_as(saved)
    if kind == "PNG":
        data = saved.read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 5_000
    elif kind == "SVG":
        root = ElementTree.parse(saved).getroot()
        assert "Training loss (nats per token)" in "".join(root.itertext())
        assert {node.get("stroke") for node in root.iter("{http://www.w3.org/2000/svg}path")} > {
            "rgb(42, 98, 181)"
        }
    else:
        rows = saved.read_text().splitlines()
        assert rows[0] == "run,stage,step,tokens,elapsed_s,loss"
        assert rows[-1] == "small,base_train,2,8,1.00,1.5"


def test_keys_read_values_and_zoom_all_plots(page):
    canvas = page.locator(".canvas").first
    canvas.focus()
    canvas.press("Home")
    page.locator("#announcer", has_text="step 1: big 3, small 1.5").wait_for(state="attached")
    canvas.press("+")
    assert page.locator("#reset").is_visible()
    canvas.press("Escape")
    assert not page.locator("#reset").is_visible()


def test_a_run_is_left_out_and_the_address_says_so(page):
    page.get_by_role("checkbox", name="small").uncheck()
    page.locator(".card").nth(1).wait_for(state="detached")
    assert page.url.endswith("/runs?run=big")
    assert page.locator(".plot .values").first.inner_text() == "2"


def test_without_runs_the_page_says_how_to_start_one(browser, tmp_path):
    with serving(create_dashboard(tmp_path / "runs", Access())) as address:
        page = browser.new_page()
        page.goto(f"{address}/runs")
        page.get_by_text("No runs yet").wait_for()
        assert page.get_by_text("PRESET=pocket bash speedrun.sh").is_visible()
        put(
            tmp_path / "runs" / "first" / "base_train" / "metrics.jsonl", '{"step": 1, "loss": 2}\n'
        )
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.locator(".card", has_text="first").wait_for()
        page.close()


def test_a_server_with_a_key_asks_for_it_once_and_frames_send_it_too(browser, folder):
    with serving(create_dashboard(folder, Access(keys=("a;key",)))) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{address}/runs")
        page.get_by_label("This server asks for an API key").fill("a;key")
        page.get_by_role("button", name="Continue").click()
        page.locator(".card", has_text="small").wait_for()
        page.reload()
        page.locator(".card", has_text="small").wait_for()
        page.get_by_text("Report of small").click()
        page.frame_locator("iframe").get_by_text("nanochat training report").wait_for()
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_axe_finds_nothing(page, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    found = axe.run(page).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"]) for item in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
