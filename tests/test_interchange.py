"""Networks to other programs' files and back: names, layouts, the same bits; and files that are not what they claim."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from mpirun import ROOT
from test_data_decode import SHARED
from test_docs_snippets import SNIPPET

import knltrain as kt
from knltrain import cli
from knltrain.data.shards import Packed
from knltrain.interchange import entries, give
from knltrain.models import build
from knltrain.models.state import state
from knltrain.recipe.experiment import network_facts
from knltrain.tools.portable import import_weights

safetensors = pytest.importorskip("safetensors.numpy")
safe_open = pytest.importorskip("safetensors").safe_open


def network(name="resnet_cifar8", classes=3, crop=16, seed=5, **options):
    """One with names of classes and colours of its own, every value drawn at random."""
    names = [f"class {number} 'ä\"" for number in range(classes)]
    net = kt.network(name, names, crop, mean=(100, 110, 120), std=(50, 60, 70), seed=seed, **options)
    rng = np.random.default_rng(seed)
    for array in state(net._model().parameters, momentum=False).values():
        array += rng.uniform(0, 1, array.shape).astype(np.float32)
    return net


def tensors(net):
    return {name: array.copy() for name, array in state(net._model().parameters, momentum=False).items()}


def equal(one, two):
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


def torchvision_names(blocks, bottleneck):
    """Learned tensors of torchvision's ResNet, written down apart."""
    convs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")][: 3 if bottleneck else 2]
    pairs = [("conv1", "bn1")]
    for layer, count in enumerate(blocks, start=1):
        for index in range(count):
            block = f"layer{layer}.{index}"
            pairs += [(f"{block}.{conv}", f"{block}.{norm}") for conv, norm in convs]
            if index == 0 and (layer > 1 or bottleneck):
                pairs.append((f"{block}.downsample.0", f"{block}.downsample.1"))
    names = {"fc.weight", "fc.bias"} | {f"{conv}.weight" for conv, _ in pairs}
    return names | {f"{n}.{what}" for _, n in pairs for what in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"),
    [
        ("resnet18", (2, 2, 2, 2), False),
        ("resnet34", (3, 4, 6, 3), False),
        ("resnet50", (3, 4, 6, 3), True),
        ("resnet101", (3, 4, 23, 3), True),
        ("resnet_cifar20", (3, 3, 3), False),
    ],
)
def test_entries__are_torchvisions_resnets(name, blocks, bottleneck):
    table = {entry.theirs: entry.shape for entry in entries(*build(name, classes=10))}
    assert table.keys() == torchvision_names(blocks, bottleneck)
    assert table["fc.weight"] == (10, table["fc.weight"][1]) and table["fc.bias"] == (10,)
    assert table["conv1.weight"] == ((16, 3, 3, 3) if "cifar" in name else (64, 3, 7, 7))
    assert table["layer2.0.downsample.0.weight"][2:] == (1, 1)


def test_entries__are_torchvisions_alexnet():
    shapes = {
        "features.0": (64, 3, 11, 11), "features.3": (192, 64, 5, 5), "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3), "features.10": (256, 256, 3, 3), "classifier.1": (4096, 9216),
        "classifier.4": (4096, 4096), "classifier.6": (1000, 4096),
    }  # fmt: skip
    expected = {f"{name}.weight": shape for name, shape in shapes.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    assert {entry.theirs: entry.shape for entry in entries(*build("alexnet_owt"))} == expected


def test_entries__turn_weights_as_pytorch_has_them():
    """Element by element: an image (H, W, C) against (C, H, W), and what a fully connected layer makes of it."""
    layers, input_shape = build("alexnet_owt", input_size=131, hidden=8)
    table = {entry.theirs: entry for entry in entries(layers, input_shape)}
    conv, dense = table["features.3.weight"], table["classifier.1.weight"]
    w = np.random.default_rng(0).normal(size=conv.ours_shape).astype(np.float32)
    assert conv.give(w)[5, 7, 1, 2] == w[1, 2, 7, 5]
    w = np.random.default_rng(0).normal(size=dense.ours_shape).astype(np.float32)
    assert dense.split == (3, 3, 256, 8)
    assert dense.give(w)[6, 50 * 9 + 1 * 3 + 2] == w[0, 0, (1 * 3 + 2) * 256 + 50, 6]


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"crop": 32, "width": 4}),
        ("resnet_cifar8", {"crop": 16, "width": 4}),
        ("davidnet", {"crop": 32, "width": 4}),
        ("speednet", {"crop": 32, "width": 4}),
        ("alexnet_owt", {"crop": 131, "hidden": 8}),
        ("alexnet_bn", {"crop": 131, "hidden": 8, "width": 0.1, "norm": "jia"}),
    ],
)
def test_file__comes_back_to_the_bit(name, options, ending, tmp_path):
    net = network(name, **options)
    kt.export(net, tmp_path / f"net{ending}")
    again = kt.import_weights(tmp_path / f"net{ending}")
    equal(tensors(net), tensors(again))
    facts = [network_facts(one.recipe, one.class_names, one.packed) for one in (net, again)]
    assert facts[0] == facts[1]
    kt.export(again, tmp_path / f"again{ending}")
    if ending == ".safetensors":
        equal(*(safetensors.load_file(tmp_path / f"{stem}.safetensors") for stem in ("net", "again")))


def test_import__of_a_foreign_file_with_other_spellings(tmp_path):
    """As torchvision and others write: no word of classes, counters, DataParallel's prefix, half precision."""
    net = network(classes=7, width=8)
    arrays = give(entries(net.layers, net.input_shape), tensors(net))
    equal(tensors(foreign(tmp_path, arrays)), tensors(net))
    spelled = {f"module.{n.replace('downsample', 'shortcut').replace('fc.', 'linear.')}": a for n, a in arrays.items()}
    counted = spelled | {"module.bn1.num_batches_tracked": np.array(3)}
    found = foreign(tmp_path, counted)
    equal(tensors(found), tensors(net))
    assert found.class_names == list("0123456") and found.packed == ("jpeg", 0, "crop")
    assert (found.recipe.data.crop, found.recipe.data.short_side) == (32, 32)
    half = foreign(tmp_path, {name: array.astype(np.float16) for name, array in arrays.items()})
    equal(tensors(half), {name: array.astype(np.float16).astype(np.float32) for name, array in tensors(net).items()})


def foreign(folder, arrays, model="resnet_cifar8", settings=("model.width=8",), **more):
    safetensors.save_file(arrays, folder / "foreign.safetensors")
    return import_weights(folder / "foreign.safetensors", model, settings=settings, **more)


def damaged(change):
    """A change of the arrays of a file as a function of them."""
    return lambda arrays: arrays | change(arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {n: v for n, v in a.items() if n != "layer2.0.bn1.bias"}, "no tensor layer2.0.bn1.bias, expected"),
        (lambda a: {n.replace("bn1.b", "bn1.B"): v for n, v in a.items()}, "the nearest is 'bn1.Bias'"),
        (damaged(lambda a: {"aux.weight": a["fc.bias"]}), "'aux.weight', which resnet_cifar8 does not have"),
        (damaged(lambda a: {"fc.weight": a["fc.weight"].T.copy()}), "layer3|found fc.weight"),
        (damaged(lambda a: {"bn1.bias": a["bn1.bias"].astype(np.float64)}), r"bn1.bias \(8,\) of float64, expected"),
        (damaged(lambda a: {"bn1.bias": a["bn1.bias"].astype(np.int64)}), r"bn1.bias \(8,\) of int64"),
        (damaged(lambda a: {"bn1.bias": a["bn1.bias"] * np.float32(np.nan)}), "values in bn1.bias that are not finite"),
        (damaged(lambda a: {"bn1.running_var": -a["bn1.running_var"]}), "expected variances"),
        (damaged(lambda a: {"module.bn1.bias": a["bn1.bias"]}), "'bn1.bias' twice"),
        (damaged(lambda a: {"fc.bias": np.zeros(2**21, np.float32)}), "option classes: found 2097152"),
        (lambda a: {"x": np.zeros(3, np.float32)}, "found no tensor bn1.bias, expected all of resnet_cifar8"),
    ],
)  # fmt: skip
def test_import__refuses_what_is_not_the_network(change, message, tmp_path):
    net = network(width=8)
    arrays = give(entries(net.layers, net.input_shape), tensors(net))
    foreign(tmp_path, arrays)
    with pytest.raises(ValueError, match=message):
        foreign(tmp_path, change(arrays))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"classes": "[1, 2, 3]"}, "found class 1, expected a name"),
        ({"classes": '["a", "b", "a"]'}, "expected each once"),
        ({"classes": '["a", "b"]'}, "found 3 classes, but 2 names"),
        ({"classes": '"abc"'}, "expected a list as JSON"),
        ({"classes": "[" * 10**5}, "expected a list as JSON"),
        ({"knltrain": "[]"}, "expected a dict as JSON"),
        ({"knltrain": '{"model.name": 5}'}, "the network 5, whose program"),
        ({"knltrain": '{"model.name": "evil.py:run"}'}, "'evil.py:run', whose program is not in it: expected --model"),
        ({"knltrain": '{"model.name": "resnet_cifar8", "model.args": []}'}, "names no network"),
        ({"knltrain": '{"model.name": "resnet_cifar8", "model.args": {"width": -3}}'}, "option width: found -3"),
        ({"knltrain": '{"model.name": "resnet_cifar8", "data.crop": 1e9}'}, "expected a whole number"),
        ({"knltrain": '{"model.name": "resnet_cifar8", "data.crop": 16, "data.size": -1}'}, "data.size -1, expected 0"),
        ({"knltrain": '{"model.name": "resnet_cifar8", "data.std": [0, 1, 1]}'}, "data.std"),
    ],
)
def test_import__believes_no_word_of_a_file(about, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    net = network(width=4)
    kt.export(net, "net.safetensors")
    arrays = safetensors.load_file("net.safetensors")
    said = {"knltrain": json.dumps({"model.name": "resnet_cifar8", "model.args": {"width": 4}, "data.crop": 16})}
    safetensors.save_file(arrays, "net.safetensors", said | about)
    with pytest.raises(ValueError, match=message) as caught:
        import_weights("net.safetensors")
    assert str(caught.value).startswith("net.safetensors: ")


def test_import__runs_no_pickle(tmp_path, capsys):
    """Neither PyTorch's zip nor its older form, nor an array of objects in a .npz."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil(), 2))
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(Evil(), 2))
    np.savez(tmp_path / "objects.npz", x=np.array([Evil()], object))
    pickle.loads(pickle.dumps(Evil()))
    (tmp_path / "ran").rmdir()  # it would have
    for name in ("old.pth", "new.pth", "objects.npz"):
        assert cli.main(["import", str(tmp_path / name), "--model", "resnet50"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("expected numbers" if ".npz" in name else "torch.load(") in error
    assert not (tmp_path / "ran").exists()


def test_import__refuses_what_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("weights\n" * 100)
    for name in ("pipe", "empty", "text"):
        with pytest.raises(ValueError, match=f"{name}: found"):
            import_weights(tmp_path / name, "resnet50")
    safetensors.save_file({str(n): np.zeros(1, np.uint8) for n in range(10**5 + 1)}, tmp_path / "many")
    with pytest.raises(ValueError, match="found 100001 tensors"):
        import_weights(tmp_path / "many", "resnet50")
    with pytest.raises(FileNotFoundError):
        import_weights(tmp_path / "nothing", "resnet50")
    kt.export(network(width=4), tmp_path / "net.npz")
    with zipfile.ZipFile(tmp_path / "net.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    swollen = members["fc.bias.npy"].replace(b"(3,)", b"(3000000000000,)".ljust(16))
    with zipfile.ZipFile(tmp_path / "net.npz", "w") as archive:
        for name, data in (members | {"fc.bias.npy": swollen}).items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="fc.bias.npy"):
        import_weights(tmp_path / "net.npz")


def test_export__of_unknown_layers_and_formats_is_refused(tmp_path):
    net = network(width=4)
    with pytest.raises(ValueError, match="found no format, expected one of safetensors, npz, torch, onnx"):
        kt.export(net, tmp_path / "net.weights")
    clash = [kt.layers.Conv2d("conv1.x", 4, 3), kt.layers.BatchNorm("conv1.x"), kt.layers.Linear("fc", 2)]
    net = kt.network(lambda classes: clash, ["a", "b"], 8)
    with pytest.raises(ValueError, match="would both be called conv1.x.weight"):
        kt.export(net, tmp_path / "net.npz")


# ---- the commands ------------------------------------------------------------------------------------------------


def test_commands__there_and_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = network(width=4, crop=16)
    net.save("net.h5")
    assert cli.main(["export", "net.h5", "--to", "npz"]) == 0
    assert capsys.readouterr().out.startswith("net.npz: resnet_cifar8, 47 tensors, 0.0 MB, 3 classes")
    assert cli.main(["import", "net.npz", "--out", "again.h5"]) == 0
    assert "again.h5: resnet_cifar8, 3 classes\n" in capsys.readouterr().out
    equal(tensors(kt.load("again.h5")), tensors(net))
    (tmp_path / "names.txt").write_text("cat\r\ndog\nbird\n\n")
    settings = ["--set", "model.width=4", "--set", "data.crop=24", "--set", "data.mean=[1, 2, 3]", "--force"]
    assert cli.main(["import", "net.npz", "--model", "resnet_cifar8", "--classes", "names.txt", *settings]) == 0
    found = kt.load("net.h5")
    assert found.class_names == ["cat", "dog", "bird"] and found.recipe.data.crop == 24
    assert found.recipe.data.mean == (1, 2, 3)


def test_commands__for_a_network_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "from knltrain.layers import Conv2d, BatchNorm, GlobalAvgPool, Linear\n"
        "def tiny(classes, width=4):\n"
        "    first = [Conv2d('first', width, 3), BatchNorm('bn', relu=True)]\n"
        "    return [*first, GlobalAvgPool('pool'), Linear('out', classes)]\n"
    )
    net = network(f"{tmp_path}/my_nets.py:tiny", width=5)
    kt.export(net, "net.npz")
    assert cli.main(["import", "net.npz"]) == 2
    assert "whose program is not in it: expected --model" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    os.rename("my_nets.py", "elsewhere/my_nets.py")
    assert cli.main(["import", "net.npz", "--model", "elsewhere/my_nets.py:tiny"]) == 0
    again = kt.load("net.h5")
    equal(tensors(again), tensors(net))
    assert again.class_names == net.class_names and again.recipe.data.crop == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "net.h5", "--to", "npz", "--out", "net.h5"], "found the file that is read, expected another"),
        (["import", "net.npz", "--out", "net.npz"], "found the file that is read, expected another"),
        (["export", "net.h5", "--to", "npz"], "net.npz: found a file, expected none: --out FILE names"),
        (["import", "net.npz"], "net.h5: found a file, expected none: --out FILE names another, --force replaces it"),
        (["import", "net.npz", "--force", "--model", "resnet_cifra8"], "the nearest known is 'resnet_cifar'"),
        (["import", "net.npz", "--force", "--model", "resnet_cifar14"], "found no tensor layer1.1"),
        (["import", "net.npz", "--force", "--classes", "two.txt"], "found 3 classes, but 2 names"),
        (["import", "net.npz", "--force", "--set", "data.corp=3"], "data.crop"),
    ],
)
def test_commands__refuse_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network(width=4).save("net.h5")
    kt.export(kt.load("net.h5"), "net.npz")
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    before = (tmp_path / "net.h5").read_bytes(), (tmp_path / "net.npz").read_bytes()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert before == ((tmp_path / "net.h5").read_bytes(), (tmp_path / "net.npz").read_bytes())


def test_export__without_the_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network(width=4).save("net.h5")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main(["export", "net.h5", "--to", "onnx"]) == 2
    assert capsys.readouterr().err == (
        "knltrain: error: onnx is not installed, expected it for this format: pip install onnx\n"
    )
    assert not (tmp_path / "net.onnx").exists()


def test_torch__loads_a_state_dict_with_weights_only(tmp_path):
    torch = pytest.importorskip("torch")
    net = network(width=4)
    kt.export(net, tmp_path / "net.pth")
    found = torch.load(tmp_path / "net.pth", weights_only=True)
    equal({n: t.numpy() for n, t in found.items()}, give(entries(net.layers, net.input_shape), tensors(net)))


# ---- ONNX --------------------------------------------------------------------------------------------------------


def pictures(net, count):
    """Photos where they are, else noise, as the network sees them."""
    files = sorted(SHARED.glob("imagenet-samples/*/*"))
    files = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg")]
    rng = np.random.default_rng(1)
    if files:
        from knltrain.data.decode import decode

        photos = [decode(np.frombuffer(file.read_bytes(), np.uint8)) for file in files[:: len(files) // count][:count]]
    else:
        photos = list(rng.integers(0, 256, (count, 300, 260, 3), np.uint8))
    images, augment = np.empty((len(photos), *net.input_shape), np.float32), net.preprocessing()
    for photo, out in zip(photos, images, strict=True):
        augment.apply(np.ascontiguousarray(photo), 0, 0, out)
    return images


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"crop": 64, "width": 8}),
        ("resnet_cifar8", {"crop": 32, "width": 8}),
        ("alexnet", {"crop": 131, "hidden": 32, "width": 0.25}),
        ("alexnet_bn", {"crop": 131, "hidden": 32, "width": 0.25}),
        ("alexnet_owt", {"crop": 131, "hidden": 32}),
        ("davidnet", {"crop": 32, "width": 8}),
        ("speednet", {"crop": 32, "width": 8}),
    ],
)
def test_onnx__gives_our_logits(name, options, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    net, rng = kt.network(name, list("abcde"), seed=2, **options), np.random.default_rng(2)
    for tensor, array in state(net._model().parameters, momentum=False).items():
        if tensor.endswith((".gamma", ".var")):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif array.ndim == 1:
            array += rng.normal(0, 0.1, array.shape).astype(np.float32)
    kt.export(net, tmp_path / "net.onnx")
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    images = pictures(net, 5)
    net.model.feed(images)
    expected = net.model.infer()[:5]
    (found,) = session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max() and np.abs(expected).max() > 0
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == list("abcde")
    assert json.loads(told["preprocessing"]) == {
        "short_side": 256, "fit": "crop", "center_crop": options["crop"], "channels": "RGB",
        "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("packed", "data", "side"),
    [
        (("raw", 40), {}, 40),
        (("jpeg", 40), {}, 40),
        (("raw", 40), {"short_side": 36}, 36),
        (("jpeg", 0), {"short_side": 36, "val_short_side": 32}, 32),
        (("jpeg", 0), {}, 256),
        (("raw", 40, "warp"), {}, 40),
    ],
)
def test_export__says_what_is_done_to_a_picture(packed, data, side, tmp_path):
    net = network(width=4)
    net.recipe = dataclasses.replace(net.recipe, data=dataclasses.replace(net.recipe.data, **data))
    net.packed = Packed(*packed)
    kt.export(net, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", framework="numpy") as file:
        told = json.loads(file.metadata()["preprocessing"])
    assert told == {
        "short_side": side, "fit": net.packed.fit, "center_crop": 16, "channels": "RGB",
        "mean": [100, 110, 120], "std": [50, 60, 70],
    }  # fmt: skip


def test_export__of_a_mean_picture_says_its_colour(tmp_path):
    mean = np.zeros((40, 40, 3), np.float32) + np.float32([90, 100, 110])
    np.save(tmp_path / "mean.npy", mean + np.arange(-19.5, 20, dtype=np.float32)[:, None, None])
    net = network(width=4)
    data = dataclasses.replace(net.recipe.data, mean_image=str(tmp_path / "mean.npy"))
    net.recipe, net.packed = dataclasses.replace(net.recipe, data=data), Packed("raw", 40)
    kt.export(net, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["preprocessing"])["mean"] == pytest.approx([90, 100, 110], abs=1e-3)


def test_onnx__of_a_layer_without_a_form_is_refused(tmp_path):
    pytest.importorskip("onnx")

    class Twice(kt.layers.ReLU):
        def forward(self, program, x):
            y = super().forward(program, x)
            program.forward[-1].kernel = twice
            return y

    def twice(x, y):
        np.multiply(x, 2, out=y)

    net = kt.network(lambda classes: [Twice("odd"), kt.layers.Linear("fc", classes)], ["a", "b"], 8)
    with pytest.raises(ValueError, match="layer 'odd' runs twice, which has no form in ONNX"):
        kt.export(net, tmp_path / "net.onnx")


def test_import__needs_no_optional_package_until_a_file_does():
    names = ("onnx", "safetensors", "torch")
    code = f"import sys, knltrain.tools.portable; print([m for m in {names} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr


# ---- the page ----------------------------------------------------------------------------------------------------


def test_page__runs_as_printed(tmp_path):
    """Its Python: a state dict converted, which is imported then, and a network asked in onnxruntime."""
    pytest.importorskip("onnxruntime")
    convert, ask = SNIPPET.findall((ROOT / "docs" / "exchange.md").read_text(encoding="utf-8"))
    kt.export(network(width=4), tmp_path / "first.onnx")
    assert run(ask, tmp_path).startswith("class ")
    pytest.importorskip("torch")
    net = network("resnet50", crop=32, width=4)
    kt.export(net, tmp_path / "resnet50.pth")
    run(convert, tmp_path)
    again = import_weights(tmp_path / "resnet50.safetensors", "resnet50", settings=("model.width=4",))
    equal(tensors(again), tensors(net))


def run(code, folder):
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout
