"""PyTorch in a process of its own, which runs as many training steps as it is told, when it is told.

Both ends are here: `TorchProcess` is used by the benchmark, `main` is what runs in the other process. Two OpenMP
runtimes in one process would fight over the cores; here one process waits, asleep, while the other works.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FP32 = ("contiguous-eager", "channels_last-eager", "contiguous-compiled", "channels_last-compiled")
AUTOCAST, CONV_BF16 = "autocast", "conv_bf16"  # autocast to bf16; fp32 tensors whose convolutions may be made in bf16
CONFIGURATIONS = (*FP32, *(f"{name}-{arithmetic}" for arithmetic in (AUTOCAST, CONV_BF16) for name in FP32))
MODELS = {"resnet50": ("classes",), "alexnet": ("classes", "groups"), "alexnet_bn": ("classes", "groups")}  # options
WARM_UP_STEPS = 3  # the first compiles, the next ones still settle


def configurations(precision: str) -> tuple[str, ...]:
    """Those to be measured against: fp32 against fp32, 16 bits against all."""
    return FP32 if precision == "fp32" else CONFIGURATIONS


def check_installed(python: str = "") -> None:
    """Raises ImportError where there is no PyTorch, here or for another interpreter; OSError where that is none."""
    if python:
        tried = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
        if tried.returncode:
            last = (tried.stderr.strip().splitlines() or ["no word"])[-1]
            raise ImportError(f"--torch {python}: found no PyTorch there ({last}), expected an interpreter that has it")
    elif importlib.util.find_spec("torch") is None:
        raise ImportError("PyTorch is not installed, expected it for --against torch: pip install torch")


class TorchProcess:
    """One configuration, started and warmed up. `error` says in a line why it does not run or count, or is empty.

    python: another interpreter, which needs PyTorch and nothing else.
    """

    def __init__(self, settings: dict, configuration: str, python: str = ""):
        path = [str(Path(__file__).parents[2]), *([] if python else sys.path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        environment |= {"OMP_NUM_THREADS": str(settings["threads"]), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self.name = configuration
        self.process = subprocess.Popen(
            [python or sys.executable, "-m", "knltrain.bench.torch_process", json.dumps(settings), configuration],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        first = self._read()
        self.error, self.version = first.get("error", ""), first.get("version", "")

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(f"PyTorch, {self.name}: {answer['error']}")
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        return answer["seconds"]

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        last = self.process.stderr.read().strip().splitlines()[-1:] or ["no word"]
        return {"error": f"ended with exit code {self.process.wait()}: {last[0]}"}

    def close(self):
        """Let the process end, and wait for it."""
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.process.stderr.close()


def peak_memory_bytes() -> int:
    """The most memory this process ever had resident (VmHWM of Linux), with the interpreter and compiled code."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def by_reference(verbose: str) -> list[str]:
    """The primitives that oneDNN served by its reference code, by the lines it prints of what it runs.

    >>> by_reference("onednn_verbose,v1,primitive,exec,cpu,convolution,ref:any,forward_training,…")
    ['convolution']
    """
    found = set()
    for line in verbose.splitlines():
        head, _, rest = line.partition(",exec,")
        fields = rest.split(",")  # engine, primitive, implementation, …
        if head.startswith("onednn_verbose") and len(fields) > 2 and fields[2].startswith("ref:"):
            found.add(fields[1])
    return sorted(found)


def main(settings: dict, configuration: str):
    """Answer each line of stdin, a number of steps, with a line of JSON: seconds and peak memory."""
    answers, printed = os.fdopen(os.dup(1), "w"), tempfile.TemporaryFile("w+")
    os.dup2(printed.fileno(), 1)  # nothing that a library prints may come between; oneDNN's lines are read below
    sys.stdout = sys.stderr

    def answer(**what):
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        import torch

        from .torch_models import Trainer

        torch.set_num_threads(settings["threads"])
        layout, mode, *arithmetic = configuration.split("-")
        names = ("model", "options", "slot_batch", "size", "sgd")
        trainer = Trainer(
            **{name: settings[name] for name in names},
            channels_last=layout == "channels_last",
            compiled=mode == "compiled",
            autocast=AUTOCAST in arithmetic,
            conv_bf16=CONV_BF16 in arithmetic,
        )
        for _ in range(WARM_UP_STEPS):
            trainer.step()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            trainer.step()
        printed.seek(0)
        slow = by_reference(printed.read())
    except Exception as error:  # whatever it is belongs in the table
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return answer(error=f"{type(error).__name__}: {lines[0] if lines else ''}"[:200])
    if slow:
        return answer(version=torch.__version__, error=f"oneDNN runs its reference code for {', '.join(slow)}")
    answer(version=torch.__version__)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            trainer.step()
        answer(seconds=time.perf_counter() - start, peak_memory_bytes=peak_memory_bytes())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
