"""The report: a page of its own, in which no name from outside becomes markup, of runs small, large and damaged."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from tinyrun import write_recipe

from knltrain.data import DataSet
from knltrain.report import write_report
from knltrain.report.panels import epoch_of, panels
from knltrain.report.pictures import picture_urls
from knltrain.report.run import read_run

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[2J"


class Page(HTMLParser):
    """Tags, attributes that matter, and text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def write_run(folder, steps=60, ranks=4, tensors=3, name="cat"):
    rng, records = np.random.default_rng(1), []
    begin = {"steps_per_epoch": 10, "total_steps": steps, "global_batch": 64, "nodes": 2, "model": name}
    records.append({"kind": "begin", "step": 0, "time": 0.0, "parameters": 1200, "images": 640, "classes": 2, **begin})
    for step in range(1, steps + 1):
        numbers = {"epoch": step / 10, "loss": 2 / step, "accuracy": 0.5, "lr": 0.1, "images_per_s": 64.0}
        waits = {"data_wait_s": 0.01 * step, "exchange_exposed_s": 0.1}
        records.append({"kind": "step", "step": step, "time": 60.0 * step, **numbers, **waits})
        if step % max(1, steps // 100) == 0:
            ratios = {f"{name}{i}.w": float(rng.uniform(0.01, 1)) for i in range(tensors)}
            records.append({"kind": "trust", "step": step, "ratios": ratios})
            own = rng.uniform(0.9, 1.1, ranks).round(4)
            own[-1] = 1.5
            means = {"compute_s": own.tolist(), "data_wait_s": [0.0] * ranks, "exchange_exposed_s": [0.1] * ranks}
            records.append({"kind": "ranks", "step": step, "steps": 1, **means})
            seconds = {"forward": {"conv2d_forward": 0.5}, "memory": {"batchnorm_normalize": 0.25}}
            times = {"step_s": 1.0, "data_wait_s": 0.0, "exchange_exposed_s": 0.125}
            records.append({"kind": "ops", "step": step, **times, "seconds": seconds})
    records.append({"kind": "evaluation", "step": steps, "epoch": steps / 10, "top1": 0.75, "top5": 1.0, "images": 8})
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "machine.json").write_text(json.dumps({"ranks": ranks, "processes": [f"{name} process 1"] * ranks}))
    (folder / "recipe.toml").write_text(f"[run]\nseed = {steps}\n")
    one = {"row": 0, "label": 0, "predicted": 1, "of_label": 0.25, "of_predicted": 0.75, "name": name}
    facts = {"step": steps, "data": "nowhere", "digest": "0", "class_names": [name, "dog"]}
    facts |= {"confusion": [[0, 1, 2], [0, 0, 4], [1, 1, 2]], "best": [], "worst": [one]}
    (folder / "predictions.json").write_text(json.dumps(facts))
    return folder


def test_report__shows_what_the_log_says(tmp_path):
    (path,) = write_report([write_run(tmp_path / "run")], None)
    text = Page(path).text
    assert path == tmp_path / "run" / "report.html"
    told = ("75.00%", "1 h 0 min", "2 node-hours", "64 images/s", "640 images", "after epoch 6", "so far")
    for expected in (*told, "conv2d_forward", "12.5%", "Trust ratio"):
        assert expected in text, expected
    assert "60 of 60" in text and "pictures are left out" in text and "taken for dog 75.0%" in text


def test_report__names_from_outside_are_text(tmp_path):
    (path,) = write_report([write_run(tmp_path / "run", name=HOSTILE)], None)
    page = Page(path)
    assert page.tags.count("script") == 1 and "onerror" not in dict(page.attributes)
    assert HOSTILE.replace("\x1b", "\\x1b") in page.text
    urls = [value for name, value in page.attributes if name in ("src", "href")]
    assert urls and all(value.startswith("data:image/") for value in urls)


def test_report__of_several_runs_says_what_differs(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=40)]
    (path,) = write_report(runs, tmp_path / "both.html")
    text = Page(path).text
    assert path == tmp_path / "both.html" and "run.seed6040" in text and "b: top-1" in text


def test_report__of_runs_in_phases_says_which_phases_differ_and_keeps_their_epochs(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    for run, crop in zip(runs, (12, 16), strict=True):
        phase = f"[[phase]]\nfrom_epoch = 3.0\ndata.crop = {crop}\n"
        (run / "recipe.toml").write_text((run / "recipe.toml").read_text() + phase)
    log = runs[0] / "log.jsonl"  # a batch twice as large: its steps are twice as many epochs
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [one | {"epoch": 2 * one["epoch"]} if "epoch" in one else one for one in lines]
    log.write_text("".join(json.dumps(one) + "\n" for one in lines))
    (path,) = write_report(runs, tmp_path / "both.html")
    assert "phase 1.data.crop1216" in Page(path).text and "phase 1.from_epoch" not in Page(path).text
    found = read_run(runs[0], "a")
    np.testing.assert_allclose(epoch_of(found, np.array([10.0, 60.0])), [2, 12])
    found.settings["phase 1.batch.global_batch"] = 128
    waiting = panels([found])[-1].lines[0]  # 0.01 s of a step of 1 s, from epoch 3 on of 2 s
    np.testing.assert_allclose(waiting.y[[5, -5]], [0.01, 0.005], rtol=1e-6)


def test_pictures__are_what_the_network_saw(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_recipe(tmp_path)
    shards = tmp_path / "shards"
    facts = {"data": str(shards), "digest": DataSet(shards).digest, "best": [{"row": 3}], "worst": []}
    whole = image.fromarray(DataSet(shards).image(3))
    for seen, side in (((0, 0), 20), ((10, 0), 10), ((10, 25), 8), ((30, 0), 20), ((1e9, 1), 20)):
        urls, missing = picture_urls(facts | dict(zip(("crop", "short_side"), seen, strict=True)), None)
        found = image.open(io.BytesIO(base64.b64decode(urls[3].partition(",")[2])))
        assert (found.size, missing) == ((side, side), "")
        edge = (20 - side) // 2
        part = np.asarray(whole.crop((edge, edge, edge + side, edge + side)), float)
        assert np.abs(np.asarray(found, float).mean() - part.mean()) < 12


def test_report__of_a_large_run_is_small(tmp_path):
    (path,) = write_report([write_run(tmp_path / "run", steps=4000, ranks=512, tensors=161)], None)
    assert path.stat().st_size < 3e6


def test_report__passes_over_what_is_no_number(tmp_path):
    folder = write_run(tmp_path / "run")
    odd = [{"kind": "step", "step": 61, "loss": "x", "epoch": []}, {"kind": "ranks", "step": 61, "compute_s": 3}]
    odd += [{"kind": "trust", "step": 61, "ratios": [1]}, {"kind": "ops", "step": 61, "seconds": {"forward": None}}]
    with open(folder / "log.jsonl", "a") as log:
        log.write("".join(json.dumps(record) + "\n" for record in odd) + "[1]\n{")
    (folder / "machine.json").write_text("[")
    (folder / "predictions.json").write_text('{"class_names": ["a"], "confusion": [[5, 0, 1], "x"], "worst": [1]}')
    (folder / "recipe.toml").write_text("= no")
    assert write_report([folder], None)[0].is_file()


def test_report__of_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="found no log.jsonl, expected the run folder"):
        write_report([tmp_path], None)
    with pytest.raises(ValueError, match="nowhere: found no folder, expected the shards of the shown pictures"):
        write_report([tmp_path], None, tmp_path / "nowhere")


def test_report__draws_the_curves_for_a_paper(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    _, pdf, png = write_report([write_run(tmp_path / "run")], None, None, [tmp_path / "a.pdf", tmp_path / "a.png"])
    assert pdf.read_bytes()[:5] == b"%PDF-" and png.read_bytes()[1:4] == b"PNG"
