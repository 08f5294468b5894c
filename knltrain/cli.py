"""The `knltrain` command: read the arguments, call one function, turn errors into one line and an exit code.

Exit codes: 0 done, 1 a defect of this program (traceback), 2 something the user can mend (one line), 73 the run folder
belongs to another run, 130 Ctrl-C, 141 nobody reads the output any more (no word), 143 training stopped by SIGTERM.
KNLTRAIN_DEBUG=1 shows the traceback of 2 too, which helps where NumPy raised a ValueError by our fault.
"""

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from .arguments import parser
from .claims.errors import all_ranks, explain
from .claims.text import printable, visible

# ---- commands: each imports what it needs, so that `knltrain --help` is instant; results: see `_told` ----------------


def _line(text: str):
    print(f"knltrain: {printable(text)}", file=sys.stderr, flush=True)


def _train(args):
    from .startup import Clock, share_kernels

    clock, run_dir = Clock(), args.run or Path("runs") / args.recipe.stem
    from .comm import Arrival, world
    from .run.lifecycle import Lifecycle, could_not_begin

    with could_not_begin(run_dir), Arrival(run_dir, _line):
        comm = world()
    with all_ranks(comm):
        clock.phase("mpi")
        with Lifecycle(run_dir, comm, _line) as life:
            from .recipe.config import load_recipe
            from .recipe.inherit import find_recipe

            recipe = load_recipe(args.recipe, args.set)  # before anything is compiled, or said to be
            clock.leave(share_kernels(comm, find_recipe(args.recipe), args.set))
            clock.phase("kernels")
            from .run.checkpoint import advice
            from .run.faults import Faults
            from .tell.screen import Screen
            from .train import train

            clock.phase("imports")
            life.claim()
            try:
                observers = [clock, Faults(args.inject, comm.rank, life.run_dir)]
                screen = Screen(args.progress, args.verbose, every=recipe.run.log_every_seconds)
                return train(recipe, life, args.resume, comm, observers, screen)
            except Exception as error:
                if life.began:  # else the error says what to do
                    error.add_note(advice(life.run_dir))
                raise


def _pack(args):
    from .comm import world

    with all_ranks(world()) as comm:
        from dataclasses import fields

        from .data.pack import Packing, pack
        from .node.machine import take_share

        how = {f.name: getattr(args, f.name) for f in fields(Packing)}
        pack(_one_source(args.src), args.out, threads=take_share(comm).threads, comm=comm, **how)


def _one_source(paths):
    if len(paths) > 1:
        pattern = f"{paths[0].parent / '*'}{paths[0].suffix}"
        raise ValueError(f"found {len(paths)} sources, expected one: put a pattern in quotes, as '{pattern}'")
    return paths[0]


def _recipes(args):
    from .recipe.inherit import origins, parts_of_file, published

    if args.show:
        from .recipe.config import load_recipe, resolved

        recipe, parts = load_recipe(args.show, args.set), parts_of_file(args.show)
        print(visible(f"# {' extends '.join(part.name for part in reversed(parts))}"))
        print(visible(resolved(recipe, origins(parts, args.set))), end="")
        return
    for name, path in published().items():
        print(f"{name:26}  {path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}")


def _watch(args):
    from .tell.screen import Screen
    from .tell.watch import watch

    watch(args.run, Screen(args.progress, stream=sys.stdout))


def _report(args):
    from .report import write_report

    for path in write_report(args.runs, args.out, args.data, list(filter(None, (args.pdf, args.png)))):
        print(printable(str(path)))


def _sweep(args):
    from .node.leaks import sweep

    return f"{len(sweep())} files of dead processes removed"


def _shards(args):
    from .data.mean import write_mean
    from .data.verify import summarize

    return printable(write_mean(args.dir, args.mean)) if args.mean else summarize(args.dir)


def _show(args):
    from .tools.show import show_pictures, show_samples

    name = args.dir.resolve().name
    if args.recipe is None:
        line = show_pictures(args.dir, args.out or Path(f"{name}.png"))
    else:
        line = show_samples(args.dir, args.recipe, args.set, args.out or Path(f"{name}_samples.png"))
    for part in line.splitlines():
        print(printable(part))


def _warmup(args):
    from knltrain.kernels import cache_folder

    from .recipe.config import load_recipe
    from .recipe.inherit import find_recipe
    from .startup import warm_mark
    from .warmup import warmup

    print(warmup(load_recipe(args.recipe, args.set)))
    warm_mark(cache_folder(), find_recipe(args.recipe), args.set).touch()


IMAGENET = 1_281_167, 1000  # pictures and classes, where a recipe's are not here


def _plan(args):
    if args.published:
        from .plan.command import published

        return published()
    if args.measure:
        from .comm import world

        with all_ranks(world()) as comm:
            from .plan.measure import measure

            line = measure(args.measure, comm)
            return line if comm.rank == 0 else None
    if args.recipe is None:
        raise ValueError("no recipe; expected one, as `knltrain plan resnet50_8k_sgd --on skx8160`, or --published")
    return _plan_recipe(args)


def _plan_recipe(args):
    from .plan.command import plan, training_of
    from .recipe.config import load_recipe
    from .recipe.derived import derive
    from .recipe.experiment import build_network

    recipe, images, classes = load_recipe(args.recipe, args.set), args.images, args.classes
    if Path(recipe.data.train).exists() and not (images and classes):
        from .data import DataSet

        data = DataSet(recipe.data.train)
        images, classes = images or len(data), classes or len(data.class_names)
    images, classes = images or IMAGENET[0], classes or IMAGENET[1]
    name = args.recipe.stem + ", its first phase throughout" * bool(recipe.phases)
    training = training_of(recipe, name, derive(recipe, images), lambda: build_network(recipe, classes))
    return plan(training, args.on, args.nodes, args.ranks, args.plot)


def _bench_step(args):
    if args.machine:
        from .models import build
        from .plan.command import simulate

        what = f"{args.model}, slot batch {args.slot_batch}, {args.precision}"
        how = (args.machine, args.cores, args.slot_batch, args.precision)
        return simulate(build(args.model, **args.set), what, *how)
    if args.cores:
        raise ValueError(f"--cores {args.cores}: of which machine? expected --machine NAME too")
    from .bench.step import run

    how = (args.threads, args.set, args.against, args.configurations, args.precision, args.torch)
    return run(args.model, args.slot_batch, *how)


def _bench_feed(args):
    from .bench import feed

    if args.against == "pack":
        feed.packing(args.path, ranks=args.ranks)
    elif args.against == "step":
        feed.step(args.path, args.model)
    else:
        feed.index(args.path)


def _bench_settings(args):
    from .comm import world

    with all_ranks(world()) as comm:
        from .bench.settings import run
        from .node.machine import take_share
        from .recipe.config import load_recipe

        whole = [*args.set, "data.mean_image="]  # pictures are random
        recipes = {way: load_recipe(args.recipe, [*whole, *way.split()]) for way in args.ways or [""]}
        slowed = {"slow": args.slow, "by": args.by}
        return run(comm, take_share(comm), recipes, **slowed, steps=args.steps)


# command: MODULE:FUNCTION and its arguments, KEYWORD=ARGUMENT where it has them by name, **ARGUMENT where that is a
# dict of them; `comm`: on all ranks together
CALLS = {
    "bench_allreduce": "bench.allreduce:run comm sizes algorithms wires nodes",
    "bench_checkpoint": "bench.checkpoint:run model slot_batch threads set out",
    "bench_compare": "bench.compare:run benchmark base beside rounds ranks save json",
    "bench_data": "bench.data:run dirs levels=augmentation threads=threads crop=crop seconds=seconds as_json=json",
    "bench_kernels": "bench.kernels:run model slot_batch threads set passes layers plot precision",
    "bench_overlap": "bench.overlap:run comm model slot_batch set delay bucket_bytes algorithm wire",
    "bench_records": "bench.records:run model slot_batch threads set turns",
    "demo": "tools.demo:demo out ranks=ranks fresh=fresh",
    "describe": "models:describe model **set",
    "doctor": "doctor:doctor comm data=data as_json=json",
    "drill": "tools.drill:drill out ranks=ranks count=count seed=seed launcher=launcher kinds=kind limit_s=limit",
    "evaluate": "evaluate:evaluate_run path data set by_class comm",
    "export": "tools.portable:export_run path to out force",
    "import": "tools.portable:import_file file model classes set out force",
    "init": "recipe.starter:write_starter dir val out",
    "lint": "recipe.lint:lint_file recipe set images",
    "predict": "api:predict_files path images top json",
    "trace": "trace.show:show run out step",
    "verify": "data.verify:verify dir threads=threads decoding=decode",
}


def _call(call: str, args):
    """One of CALLS."""
    place, *words = call.split()
    if "comm" in words:
        from .comm import world

        with all_ranks(world()) as args.comm:
            return _called(place, words, args)
    return _called(place, words, args)


def _called(place, words, args):
    module, _, name = place.partition(":")
    given, named = [], {}
    for word in words:
        key, equals, argument = word.partition("=")
        if word.startswith("**"):
            named |= getattr(args, word[2:])
        elif equals:
            named[key] = getattr(args, argument)
        else:
            given.append(getattr(args, word))
    return getattr(import_module(f"knltrain.{module}"), name)(*given, **named)


def _told(result, args) -> int:
    """Print what a command returns, text or (numbers, the same as text); a number is its exit code."""
    if isinstance(result, tuple):
        numbers, text = result
        result = json.dumps(numbers, indent=1) if args.json else text
    if isinstance(result, str):
        print(visible(result))
    return result if isinstance(result, int) else 0


COMMANDS = {name: partial(_call, call) for name, call in CALLS.items()} | {
    function.__name__.removeprefix("_"): function
    for function in (
        _train, _watch, _report, _pack, _plan, _recipes, _sweep, _show, _shards, _warmup, _bench_step,
        _bench_feed, _bench_settings,
    )
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        code = _told(COMMANDS[args.run_command](args), args)
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        return explain(error)
