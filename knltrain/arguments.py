"""The arguments of the `knltrain` command: what each takes, with one-line errors; `cli` has what they do."""

import argparse
import difflib
from pathlib import Path

from . import __version__
from .claims.keys import Rule, shown
from .claims.text import printable

SETTINGS = {"action": "append", "default": [], "metavar": "KEY=VALUE"}


class _Options(argparse.Action):
    """`--set key=value` for a model: into one dict, the value as TOML where it is TOML, as plain text where not."""

    def __call__(self, parser, namespace, text, option=None):
        from .claims.toml import toml_value

        key, equals, value = text.partition("=")
        if not equals or not key:
            raise argparse.ArgumentError(self, f"found {shown(text)}, expected key=value")
        setattr(namespace, self.dest, getattr(namespace, self.dest) | {key: toml_value(value)})


OPTIONS = {"action": _Options, "default": {}, "metavar": "KEY=VALUE", "help": "argument of the model, as in width=16"}


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and, for a misspelt command, the nearest one."""

    commands: dict[str, argparse.ArgumentParser] = {}

    def error(self, message):
        self.exit(2, f"knltrain: error: {printable(message)}; try {self.prog} --help\n")

    def parse_args(self, args=None, namespace=None):
        first = next(iter(args), None)
        if first is not None and not first.startswith("-") and first not in self.commands:
            near = difflib.get_close_matches(first, self.commands, 1, 0.5)
            expected = f"did you mean {near[0]!r}" if near else f"expected one of {', '.join(self.commands)}"
            self.error(f"no command {first!r}; {expected}")
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.commands[found.command].error(f"unrecognized arguments: {' '.join(rest)}")
        return found


def parser() -> argparse.ArgumentParser:
    """All commands; `run_command` of what it parses names the function of `cli` that does it."""
    whole = _Parser(prog="knltrain", description="Synchronous large-batch training on many CPU ranks.")
    whole.add_argument("--version", action="version", version=f"knltrain {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_training, _recipes, _exchange, _data, _bench, _site):
        add(commands)
    whole.commands = commands.choices
    return whole


def _training(commands):
    train = commands.add_parser("train", help="train a recipe; under mpiexec on all its ranks")
    train.add_argument("recipe", type=Path, help="TOML file that defines the experiment")
    train.add_argument("--set", **SETTINGS, help="change one value of the recipe, as in optim.momentum=0.95")
    train.add_argument("--resume", choices=["auto", "never"], default="never", help="auto: from the newest checkpoint")
    train.add_argument("--run", type=Path, metavar="DIR", help="folder of this run (default runs/RECIPE)")
    fault = {"action": "append", "default": [], "metavar": "FAULT"}
    train.add_argument("--inject", **fault, help="suffer a fault, as in kill:rank=3@step=50 (knltrain/run/faults.py)")
    progress = {"choices": ("auto", "bar", "lines", "none"), "default": "auto"}
    shown = "a redrawn line, plain lines, or none (auto, on a terminal: a redrawn block)"
    train.add_argument("--progress", **progress, help=shown)
    train.add_argument("--verbose", action="store_true", help="also where threads run and how gradients travel")
    train.set_defaults(run_command="train")

    watch = commands.add_parser("watch", help="what a run shows, from another shell, while it goes on or after")
    watch.add_argument("run", type=Path, help="folder of a run")
    watch.add_argument("--progress", **progress, help=shown)
    watch.set_defaults(run_command="watch")

    trace = commands.add_parser("trace", help="one file for a viewer of what all ranks did; who was late, and why")
    trace.add_argument("run", type=Path, help="folder of a run with run.trace = 'steps FIRST..LAST'")
    trace.add_argument("--out", type=Path, metavar="JSON", help="default RUN/trace.json")
    number = {"type": _number(least=1), "default": 0, "metavar": "N"}
    trace.add_argument("--step", **number, help="whose critical path is told (default: the median step)")
    trace.set_defaults(run_command="trace")

    evaluate = commands.add_parser("evaluate", help="top-1 and top-5, every image once")
    evaluate.add_argument("path", type=Path, metavar="RUN_OR_CHECKPOINT")
    evaluate.add_argument("--data", type=Path, metavar="DIR", help="shards or class folders (default: the recipe's)")
    evaluate.add_argument("--set", **SETTINGS, help="change one value of the recipe, as in data.val_mirror=true")
    evaluate.add_argument("--by-class", action="store_true", help="the accuracy of each class too")
    evaluate.set_defaults(run_command="evaluate")

    predict = commands.add_parser("predict", help="the most probable classes of picture files")
    predict.add_argument("path", type=Path, metavar="RUN_OR_FILE")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files, and folders of them")
    predict.add_argument("--top", type=_number(above=0), default=5, metavar="N", help="classes of each (default 5)")
    predict.add_argument("--json", action="store_true", help="an object a line")
    predict.set_defaults(run_command="predict")

    report = commands.add_parser("report", help="runs as one HTML page: result, curves, time, ranks, mistakes, recipe")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders; several are overlaid")
    report.add_argument("--out", type=Path, metavar="HTML", help="default RUN/report.html; of several, here")
    report.add_argument("--data", type=Path, metavar="DIR", help="shards of the shown pictures, where they were moved")
    for kind in ("pdf", "png"):
        report.add_argument(f"--{kind}", type=Path, metavar=kind.upper(), help="the curves as a figure too")
    report.set_defaults(run_command="report")


def _recipes(commands):
    init = commands.add_parser("init", help="write a recipe to begin with, annotated, for given shards")
    init.add_argument("dir", type=Path, help="shards to train on")
    init.add_argument("--val", type=Path, metavar="DIR", help="shards to evaluate on (default: `val` beside `train`)")
    init.add_argument("--out", type=Path, default=Path("recipe.toml"), metavar="TOML", help="default recipe.toml")
    init.set_defaults(run_command="init")

    describe = commands.add_parser("describe", help="table of a model's layers: shapes, parameters, multiply-adds")
    describe.add_argument("model", help="as in a recipe: resnet50, or FILE.py:FUNCTION")
    describe.add_argument("--set", **OPTIONS)
    describe.set_defaults(run_command="describe")

    warmup = commands.add_parser("warmup", help="compile ahead what a recipe needs: once per kind of node")
    warmup.add_argument("recipe", type=Path)
    warmup.add_argument("--set", **SETTINGS, help="as for train")
    warmup.set_defaults(run_command="warmup")

    plan = commands.add_parser("plan", help="what a recipe takes on machines that are only described; how to set it up")
    plan.add_argument("recipe", type=Path, nargs="?", help="file or name of a published recipe")
    on = {"default": "stampede2_knl7250", "metavar": "MACHINE"}
    plan.add_argument("--on", **on, help="a name, or a .toml file (default stampede2_knl7250)")
    plan.add_argument("--nodes", default="1..4096", metavar="N", help="64, or 16,32, or powers of two in 1..4096")
    ranks = {"type": _number(most=4096), "default": 0, "metavar": "N"}
    plan.add_argument("--ranks", **ranks, help="a node (default: the quickest)")
    plan.add_argument("--set", **SETTINGS, help="as for train")
    for kind in ("images", "classes"):
        told = f"{kind} (default: of the recipe's shards; where they are not here ImageNet's)"
        plan.add_argument(f"--{kind}", type=_number(most=2**30), default=0, metavar="N", help=told)
    plan.add_argument("--plot", type=Path, metavar="PNG", help="draw speed and minutes over nodes")
    plan.add_argument("--published", action="store_true", help="instead: published runs beside predictions")
    plan.add_argument("--measure", type=Path, metavar="TOML", help="instead: write the file of this machine")
    plan.add_argument("--json", action="store_true", help="numbers for programs in place of the tables")
    plan.set_defaults(run_command="plan")

    recipes = commands.add_parser("recipes", help="the published recipes, which train takes by name")
    recipes.add_argument("--show", metavar="RECIPE", help="a recipe whole: every key, and where from")
    recipes.add_argument("--set", **SETTINGS, help="as for train")
    recipes.set_defaults(run_command="recipes")

    lint = commands.add_parser("lint", help="what large-batch experience says against a recipe: fact, source, cure")
    lint.add_argument("recipe", type=Path)
    lint.add_argument("--set", **SETTINGS, help="as for train")
    pictures = {"type": _number(least=1), "default": 0, "metavar": "N"}
    lint.add_argument("--images", **pictures, help="to train on (default: the recipe's shards, else ImageNet's)")
    lint.set_defaults(run_command="lint")


def _exchange(commands):
    export = commands.add_parser("export", help="a network for other programs: safetensors, npz, torch or ONNX")
    export.add_argument("path", type=Path, metavar="RUN_OR_FILE")
    export.add_argument("--to", required=True, choices=["safetensors", "npz", "torch", "onnx"], help="the format")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: the run's name here, as in first.onnx")
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    export.set_defaults(run_command="export")

    take = commands.add_parser("import", help="weights of other programs, as torchvision's, to evaluate or fine-tune")
    take.add_argument("file", type=Path, metavar="FILE", help=".safetensors or .npz")
    take.add_argument("--model", default="", help="whose weights they are, as resnet50 (default: what our export says)")
    take.add_argument("--classes", type=Path, metavar="TXT", help="names of the classes, a line each")
    take.add_argument("--set", **SETTINGS, help="change a value of [model] or [data], as in data.crop=288")
    take.add_argument("--out", type=Path, metavar="H5", help="default: the file's name here, as in resnet50.h5")
    take.add_argument("--force", action="store_true", help="replace a file that is there")
    take.set_defaults(run_command="import")


def _data(commands):
    pack = commands.add_parser("pack", help="picture files into HDF5 shards; under mpiexec on all its ranks")
    pack.add_argument("src", type=Path, nargs="+", help="class folders or class tars, WebDataset tars, parquet files")
    pack.add_argument("out", type=Path)
    pack.add_argument("--encoding", choices=["raw", "jpeg"], default="raw")
    pack.add_argument(
        "--size", type=_number(most=8192), default=256, help="pixels of the short side (raw: of the square)"
    )
    pack.add_argument(
        "--shard-bytes", type=_number(least=1, most=2**40), default=256 << 20, help="bytes per shard, about"
    )
    pack.add_argument("--max-bad", type=_count_or_share, default=0.01, help="bad files allowed: 5, or a share as 0.05")
    pack.add_argument("--fit", choices=["crop", "warp"], default="crop", help="raw: centre square, or warped to it")
    pack.add_argument("--classes-of", type=Path, metavar="DIR", help="label by the classes of these shards")
    pack.add_argument("--empty-classes", choices=["drop", "keep"], default="drop", help="without a readable image")
    pack.add_argument("--ground-truth", type=Path, metavar="FILE", help="class numbers of files without class folders")
    pack.add_argument("--synsets", type=Path, metavar="FILE", help="names of class numbers: lines `NUMBER CLASS`")
    pack.set_defaults(run_command="pack")

    verify = commands.add_parser("verify", help="read every row of a folder of shards and check all its checksums")
    verify.add_argument("dir", type=Path)
    verify.add_argument(
        "--threads", type=_number(least=1, most=4096), help="readers (default: the cores of this process)"
    )
    verify.add_argument("--decode", action="store_true", help="decode every JPEG too")
    verify.set_defaults(run_command="verify")

    show = commands.add_parser("show", help="draw what is in a folder of shards, or what the network sees of it")
    show.add_argument("dir", type=Path)
    show.add_argument("--recipe", type=Path, metavar="TOML", help="draw the samples that this recipe makes of pictures")
    show.add_argument("--set", **SETTINGS, help="change one value of the recipe, as in data.augmentation=color")
    show.add_argument("--out", type=Path, metavar="PNG", help="default DIR.png, or DIR_samples.png, in this folder")
    show.set_defaults(run_command="show")

    shards = commands.add_parser("shards", help="what is in a folder of shards")
    shards.add_argument("dir", type=Path)
    shards.add_argument("--mean", type=Path, metavar="NPY", help="write the mean picture of raw shards instead")
    shards.set_defaults(run_command="shards")


def _site(commands):
    demo = commands.add_parser("demo", help="the whole path on pictures drawn here, in a few minutes")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    demo.add_argument("--ranks", type=_number(least=1, most=64), default=2)
    demo.add_argument("--fresh", action="store_true", help="draw and pack the pictures again")
    demo.set_defaults(run_command="demo")

    sweep = commands.add_parser("sweep", help="remove what killed runs left in /dev/shm and /tmp of this node")
    sweep.set_defaults(run_command="sweep")

    doctor = commands.add_parser("doctor", help="what is wrong with these nodes; alone, under mpiexec or srun")
    doctor.add_argument("--data", type=Path, metavar="DIR", help="shards to look into")
    doctor.add_argument("--json", action="store_true", help="one object in place of the table")
    doctor.set_defaults(run_command="doctor")

    drill = commands.add_parser("drill", help="break small trainings in every way, on this site's MPI")
    drill.add_argument("--out", type=Path, default=Path("drill"), metavar="DIR", help="a new folder")
    drill.add_argument("--ranks", type=_number(least=1, most=4096), default=4)
    drill.add_argument(
        "--count", type=_number(least=1), default=9, help="drills; one of each kind first, then random ones"
    )
    drill.add_argument("--seed", type=_number(most=2**63 - 1), default=0, help="of the random ranks and steps")
    drill.add_argument("--kind", action="append", default=[], help="only this kind of fault; may be repeated")
    drill.add_argument("--launcher", help="as in 'srun -n {ranks}'; default: this environment's mpiexec -n {ranks}")
    longest = "seconds of a training, after which it hangs (default 60); more on a machine that others use"
    drill.add_argument("--limit", type=_number(least=1, most=86400), default=60, metavar="S", help=longest)
    drill.set_defaults(run_command="drill")


def _bench(commands):
    bench = commands.add_parser("bench", help="measure the kernels or the whole step, beside what the machine can do")
    what = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    texts = {
        "kernels": "every distinct kernel call of a step",
        "step": "the whole step",
        "checkpoint": "what a checkpoint written beside training costs",
        "records": "what logging and tracing cost a step",
    }
    for name, text in texts.items():
        one = what.add_parser(name, help=text)
        one.add_argument("--model", default="resnet50", help="as in describe (default resnet50)")
        one.add_argument(
            "--slot-batch", type=_number(least=1, most=2**16), default=32, metavar="B", help="images (default 32)"
        )
        one.add_argument("--threads", type=_number(most=4096), default=0, metavar="T", help="default: all cores")
        one.add_argument("--set", **OPTIONS)
        one.add_argument("--json", action="store_true", help="numbers for programs in place of the table")
        one.set_defaults(run_command=f"bench_{name}")
        if name in ("kernels", "step"):
            one.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="default fp32")
        if name == "kernels":
            kinds = ["forward", "backward_input", "backward_weight", "memory", "packing", "update"]
            one.add_argument("--pass", dest="passes", nargs="+", choices=kinds, default=(), help="only these")
            one.add_argument("--layer", dest="layers", nargs="+", default=(), metavar="NAME", help="only these")
            one.add_argument("--plot", type=Path, metavar="PNG", help="draw the roofline")
        elif name == "checkpoint":
            one.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="on whose disk (default: here)")
        elif name == "records":
            one.add_argument("--turns", type=_number(least=1), default=100, metavar="N", help="default 100")
        else:
            kinds = [f"{a}-{b}" for b in ("eager", "compiled") for a in ("contiguous", "channels_last")]
            kinds += [f"{kind}-{arithmetic}" for arithmetic in ("autocast", "conv_bf16") for kind in kinds]
            one.add_argument("--against", choices=["torch"], help="PyTorch, in turn with ours, in its own process")
            told = "of PyTorch, only these (default: the first four with fp32, else all)"
            one.add_argument("--configurations", nargs="+", choices=kinds, default=(), help=told)
            one.add_argument("--machine", metavar="NAME", help="simulate the step on a described machine instead")
            cores = {"type": _number(most=4096), "default": 0, "metavar": "N"}
            one.add_argument("--cores", **cores, help="of the simulated machine (default: all)")
            one.add_argument("--torch", metavar="PYTHON", default="", help="interpreter that has PyTorch (this one)")
    for add in (_bench_data, _bench_feed, _bench_ranks, _bench_compare):
        add(what)


def _bench_data(what):
    data = what.add_parser("data", help="the loader alone, beside the decoder library alone")
    data.add_argument("dirs", type=Path, nargs="*", metavar="DIR", help="shards (default: photos drawn here)")
    data.add_argument("--augmentation", nargs="+", metavar="LEVEL", default=(), help="only these (default: all)")
    data.add_argument(
        "--threads",
        type=_number(least=1, most=4096),
        nargs="+",
        metavar="T",
        default=(),
        help="default: 1, and all cores",
    )
    data.add_argument("--crop", type=_number(least=1, most=8192), default=224, help="pixels (default 224)")
    data.add_argument(
        "--seconds", type=_number(float, above=0, most=3600), default=2.0, help="of each measurement (default 2)"
    )
    data.add_argument("--json", action="store_true", help="numbers for programs in place of the table")
    data.set_defaults(run_command="bench_data")


def _bench_feed(what):
    feed = what.add_parser("feed", help="packing against a bare loop, a fed step against a synthetic one")
    feed.add_argument("against", choices=["pack", "step", "index"])
    feed.add_argument("path", type=Path, help="pack: pictures; step: shards; index: a folder to make 1,024 shards in")
    feed.add_argument("--ranks", type=_number(least=1, most=4096), default=2, help="of pack (default 2)")
    feed.add_argument("--model", default="alexnet_bn", help="of step (default alexnet_bn)")
    feed.set_defaults(run_command="bench_feed")


def _bench_compare(what):
    text = "another benchmark with the code of this checkout and of an older revision, or with other options, in turn"
    compare = what.add_parser("compare", help=text)
    compare.add_argument("--base", metavar="REV", default="", help="revision (default: none, only measure and keep)")
    compare.add_argument("--beside", metavar="OPTIONS", default="", help='of its own: --beside "--precision fp32"')
    compare.add_argument("--rounds", type=_number(least=1), default=3, metavar="N", help="default 3")
    compare.add_argument("--ranks", type=_number(most=4096), default=0, metavar="N", help="by mpiexec (default: 0)")
    compare.add_argument("--save", type=Path, metavar="FILE", help="keep rows, commit and machine as JSON")
    compare.add_argument("--json", action="store_true", help="numbers for programs in place of the table")
    told = "what follows `knltrain bench`, as in: step --model alexnet_bn"
    compare.add_argument("benchmark", nargs=argparse.REMAINDER, metavar="WHAT", help=told)
    compare.set_defaults(run_command="bench_compare")


def _bench_ranks(what):
    allreduce = what.add_parser("allreduce", help="sums over ranks beside MPI's own; under mpiexec")
    allreduce.add_argument(
        "--sizes", type=_number(least=1, most=2**40), nargs="+", metavar="BYTES", help="default 1 KB to 256 MB"
    )
    allreduce.add_argument("--algorithms", nargs="+", metavar="NAME", help="default: all that fit the ranks")
    allreduce.add_argument("--wires", nargs="+", metavar="NAME", help="default: fp32 bf16 fp16 int8")
    allreduce.add_argument("--nodes", type=_number(most=2**16), default=0, help="pretend so many nodes on one machine")
    allreduce.add_argument("--json", action="store_true", help="numbers for programs in place of the table")
    allreduce.set_defaults(run_command="bench_allreduce")

    overlap = what.add_parser("overlap", help="how much of the exchange hides behind backward; under mpiexec")
    overlap.add_argument("--model", default="resnet50", help="as in describe (default resnet50)")
    overlap.add_argument(
        "--slot-batch", type=_number(least=1, most=2**16), default=8, metavar="B", help="images a rank (default 8)"
    )
    overlap.add_argument("--set", **OPTIONS)
    overlap.add_argument(
        "--delay", type=_number(float, most=1000), default=0.6, help="of a pretended wire, as a share of backward (0.6)"
    )
    overlap.add_argument(
        "--bucket-bytes", type=_number(most=2**31 - 1), default=0, help="default: chosen by measuring, as in training"
    )
    overlap.add_argument("--algorithm", default="auto", help="as comm.algorithm (default auto)")
    overlap.add_argument("--wire", default="fp32", help="as comm.wire (default fp32)")
    overlap.add_argument("--json", action="store_true", help="numbers for programs in place of the table")
    overlap.set_defaults(run_command="bench_overlap")

    settings = what.add_parser("settings", help="steps of a recipe under several settings, in turn; under mpiexec")
    settings.add_argument("recipe", type=Path, help="as of train; its pictures are random")
    settings.add_argument("--set", **SETTINGS, help="of every turn, as in comm.pretended_bandwidth=1e9")
    settings.add_argument(
        "--try", dest="ways", action="append", default=[], metavar="KEY=VALUE", help='one turn, as "comm.fc=sum"; again'
    )
    settings.add_argument(
        "--slow", type=_number(most=2**20), nargs="+", default=(), metavar="RANK", help="ranks that are slowed,"
    )
    settings.add_argument("--by", type=_number(float, most=100), default=0.3, help="by this share of a slot (0.3)")
    settings.add_argument("--steps", type=_number(least=1), default=20, metavar="N", help="of each (default 20)")
    settings.add_argument("--json", action="store_true", help="numbers for programs in place of the table")
    settings.set_defaults(run_command="bench_settings")




def _number(kind=int, **bounds):
    """The type of an option that takes a number; bounds as in Rule."""
    rule = Rule("", kind, **bounds)

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = text
        if rule.expected(value):
            raise argparse.ArgumentTypeError(f"found {shown(text)}, expected {rule.expected(value)}")
        return value

    return read


def _count_or_share(text: str) -> int | float:
    """`5` is five files, `0.05` and `1.0` are shares."""
    try:
        return _number()(text) if text.isdecimal() else _number(float, most=1)(text)
    except argparse.ArgumentTypeError:
        expected = "a count such as 5, or a share from 0.0 to 1.0"
        raise argparse.ArgumentTypeError(f"found {shown(text)}, expected {expected}") from None
