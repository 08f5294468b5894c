"""The Python API, as a newcomer uses it: a network trained from arrays and shards, saved, loaded, asked."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
from mpirun import ROOT, run_mpi
from tinyrun import write_recipe

import knltrain as kt
from knltrain import cli
from knltrain.data.decode import fit_short_side, fit_square, fit_warp
from knltrain.data.shards import Packed
from knltrain.run.checkpoint import CheckpointError

NAMES = ["dark", "light"]
SCRIPT = """
import sys
import knltrain as kt
data = kt.data(sys.argv[1])
net = kt.network("resnet_cifar8", classes=data.class_names, crop=16, width=8)
schedule = kt.poly(0.1, epochs=2)
trainer = kt.Trainer(net, data, global_batch=16, slot_batch=4, optimizer=kt.Lars(momentum=0.9), schedule=schedule)
for step in trainer:
    pass
sys.stdout.write(f"{step.number} {step.loss!r} {kt.evaluate(net, data).correct}\\n")  # in one piece, by every rank
"""


def pictures(count=64, size=12, seed=0):
    """Dark and light ones, easy to tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 100, (count, size, size, 3)) + 120 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def tiny(classes, width=8):
    """A network of one's own."""
    layers = kt.layers
    return [
        layers.Conv2d("conv", width, 3, pad=1), layers.BatchNorm("bn", relu=True), layers.GlobalAvgPool("pool"),
        layers.Linear("fc", classes),
    ]  # fmt: skip


def train(net, epochs=6, **more):
    data = kt.arrays(*pictures(), NAMES)
    how = {"optimizer": kt.Sgd(momentum=0.9), "schedule": kt.cosine(0.1, epochs=epochs), "augmentation": "none"}
    return list(kt.Trainer(net, data, global_batch=16, slot_batch=8, **how, **more))


def test_import__loads_nothing():
    code = "import sys, knltrain as kt; assert 'numba' not in sys.modules and 'numpy' not in sys.modules; kt.poly(1, 2)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert set(kt.API) <= set(dir(kt))
    with pytest.raises(AttributeError, match="no attribute 'netwrok'"):
        kt.netwrok  # noqa: B018


def test_api__trains_saves_loads_and_predicts(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    net = kt.network(tiny, classes=NAMES, crop=12, width=6)
    steps = train(net)
    assert [step.number for step in steps] == list(range(1, 25)) and steps[-1].epoch == 6
    assert steps[-1].loss < steps[0].loss and all(step.images_per_s > 0 for step in steps)
    held_out = kt.arrays(*pictures(seed=1), NAMES)
    result = kt.evaluate(net, held_out)
    assert result.top1 == 1.0 and result.images == 64
    net.save(tmp_path / "net.h5")
    again = kt.load(tmp_path / "net.h5", network=tiny)
    assert again.class_names == NAMES and kt.evaluate(again, held_out).by_class == result.by_class
    images, labels = pictures(40, seed=2)
    odd = [*images, np.full((30, 17, 3), 20, np.uint8), np.full((12, 50, 3), 230, np.uint8)]
    found = again.predict(odd, top=2)
    assert [p.names[0] for p in found] == [NAMES[label] for label in [*labels, 0, 1]]
    assert all(sum(p.probabilities) == pytest.approx(1) for p in found) and again.predict([]) == []
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize(("encoding", "fit"), [("raw", fit_square), ("jpeg", fit_short_side), ("warp", fit_warp)])
def test_predict__sees_a_picture_as_packing_would_store_it(encoding, fit):
    pytest.importorskip("PIL")
    net = kt.network(tiny, classes=NAMES, crop=12)
    net.packed = Packed("raw", 14, "warp") if encoding == "warp" else Packed(encoding, 14)
    rng = np.random.default_rng(4)
    large = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    assert net.predict([large]) == net.predict([fit(large, 14)]) != net.predict([large[:14, :14]])


def test_load__says_that_a_mean_picture_is_lost(tmp_path, capsys):
    net = kt.network("resnet_cifar8", NAMES, 12, mean=(1, 2, 3), width=4)
    net.recipe = dataclasses.replace(net.recipe, data=dataclasses.replace(net.recipe.data, mean_image="mean.npy"))
    net.save(tmp_path / "net.h5")
    kt.load(tmp_path / "net.h5")
    assert "net.h5: trained with a mean picture, which is not in the file: its" in capsys.readouterr().err


def test_trainer__goes_on_after_an_interruption():
    net, data = kt.network(tiny, classes=NAMES, crop=12), kt.arrays(*pictures(), NAMES)
    trainer = kt.Trainer(
        net, data, global_batch=16, slot_batch=16, optimizer=kt.Sgd(), schedule=kt.constant(0.1, epochs=1)
    )
    with pytest.raises(KeyboardInterrupt):
        for step in trainer:
            if step.number == 2:
                raise KeyboardInterrupt
    assert [step.number for step in trainer] == [3, 4] and len(trainer) == 4


def test_trainer__begins_with_the_weights_that_a_network_has(tmp_path):
    net = kt.network(tiny, classes=NAMES, crop=12)
    train(net, epochs=3)
    net.save(tmp_path / "net.h5")
    more = train(kt.load(tmp_path / "net.h5", network=tiny), epochs=1)
    assert more[0].loss < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.network("resnet_cifar9", NAMES, 12), "expected 6n"),
        (lambda: kt.network(tiny, NAMES, 12, depth=3), "unknown option 'depth'; it takes classes, width"),
        (lambda: kt.network(tiny, 2, 12), "classes is 2; expected a list of their names"),
        (lambda: kt.network(tiny, NAMES, -12), "data.crop is -12; expected more than 0"),
        (lambda: kt.arrays(np.zeros((3, 4, 5, 3), np.uint8), np.zeros(3, int), NAMES), r"found images \(3, 4, 5, 3\)"),
        (lambda: kt.arrays(np.zeros((3, 4, 4, 3), np.uint8), np.full(3, 2), NAMES), "labels 2 to 2, expected 0 to 1"),
        (lambda: train(kt.network(tiny, ["a", "b"], 12)), r"classes 2 \(dark, light, …\), the network 2 \(a, b, …\)"),
        (lambda: train(kt.network(tiny, NAMES, 12), precison="bf16"), "unknown option 'precison'"),
        (lambda: kt.network(tiny, NAMES, 12).predict([np.zeros((4, 4), np.uint8)]), r"picture 0: found \(4, 4\)"),
    ],
)  # fmt: skip
def test_api__refuses_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_load__refuses_what_is_no_network(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        kt.load(tmp_path / "x.h5")
    with pytest.raises(CheckpointError, match="no checkpoint in this run"):
        kt.load(tmp_path)
    with pytest.raises(CheckpointError, match="no run folder, nor a checkpoint"):
        kt.load(tmp_path / "nothing")


def test_script__gives_the_same_alone_and_on_two_ranks(tmp_path, monkeypatch, capsys):
    write_recipe(tmp_path)
    arguments = ["-c", str(tmp_path / "shards")]
    monkeypatch.setattr("sys.argv", arguments)
    exec(compile(SCRIPT, "script", "exec"), {})
    result = run_mpi(2, arguments[0], SCRIPT, arguments[1])
    assert result.returncode == 0, result.stderr
    one, two = (sorted(set(text.split("\n"))) for text in (capsys.readouterr().out, result.stdout))
    assert one == two and "6 " in one[1]


def test_recipe__takes_a_network_of_ones_own_and_weights_of_another_run(tmp_path, capsys):
    write_recipe(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "from knltrain import layers\n"
        "def tiny(classes, width=4):\n"
        "    return [layers.Conv2d('conv', width, 3, pad=1), layers.ReLU('r'), layers.GlobalAvgPool('pool'),\n"
        "            layers.Linear('fc', classes)]\n"
    )
    recipe, first = str(tmp_path / "tiny.toml"), str(tmp_path / "first")
    own = ["--set", f"model.name={tmp_path}/my_nets.py:tiny", "--set", "run.epochs=1"]
    assert cli.main(["train", recipe, "--run", first, *own]) == 0
    net = kt.load(first)
    assert [p.name for p in net.model.parameters.parameters] == ["conv.w", "fc.w", "fc.b"]
    again = ["train", recipe, "--run", str(tmp_path / "second"), *own, "--set", f"model.weights={first}"]
    assert cli.main(again) == 0
    assert f"beginning with the weights of {first}" in capsys.readouterr().err
    assert cli.main(["train", recipe, "--run", str(tmp_path / "third"), "--set", f"model.weights={first}"]) == 2
    assert "weights of another model" in capsys.readouterr().err


def test_weights__of_other_classes_leave_the_last_layer_fresh(tmp_path):
    net = kt.network(tiny, classes=NAMES, crop=12)
    train(net, epochs=1)
    net.save(tmp_path / "two.h5")
    from knltrain.comm import world
    from knltrain.recipe.experiment import begin_with

    three = kt.network(tiny, classes=["a", "b", "c"], crop=12)
    parameters = three._model().parameters
    before = parameters.named["fc.w"].w.copy()
    assert begin_with(str(tmp_path / "two.h5"), parameters, world()) == ["value/fc.b", "value/fc.w"]
    assert np.array_equal(parameters.named["fc.w"].w, before)
    assert np.array_equal(parameters.named["conv.w"].w, net.model.parameters.named["conv.w"].w)


def test_predict__prints_classes_of_files_and_folders(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    net = kt.network("resnet_cifar8", classes=NAMES, crop=12, width=8)
    train(net, epochs=8)
    net.save(tmp_path / "net.h5")
    (tmp_path / "some").mkdir()
    for name, value in (("a", 30), ("b", 220)):
        image.fromarray(np.full((20, 16, 3), value, np.uint8)).save(tmp_path / "some" / f"{name}.png")
    assert cli.main(["predict", str(tmp_path / "net.h5"), str(tmp_path / "some"), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a.png  dark " in lines[0] and "b.png  light " in lines[1]
    assert cli.main(["predict", str(tmp_path / "net.h5"), str(tmp_path / "some"), "--json"]) == 0
    assert '"classes": [{"name": "dark"' in capsys.readouterr().out
    assert cli.main(["predict", str(tmp_path / "net.h5"), str(tmp_path / "nowhere")]) == 2
    assert "nowhere: found no such file or folder, expected pictures" in capsys.readouterr().err
