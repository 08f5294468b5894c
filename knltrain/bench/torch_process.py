"""PyTorch in a process of its own, which runs as many training steps as it is told, when it is told.

Both ends are here: `TorchProcess` is used by the benchmark, `main` is what runs in the other process. Two OpenMP
runtimes in one process would fight over the cores; here one process waits, asleep, while the other works.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIGURATIONS = ("contiguous-eager", "channels_last-eager", "contiguous-compiled", "channels_last-compiled")
MODELS = ("resnet50", "alexnet", "alexnet_bn")
WARM_UP_STEPS = 3  # the first compiles, the next ones still settle


def check_installed() -> None:
    """Raises ImportError where there is no PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise ImportError("PyTorch is not installed, expected it for --against torch: pip install torch")


class TorchProcess:
    """One configuration, started and warmed up. `error` says in a line why it does not run, or is empty."""

    def __init__(self, settings: dict, configuration: str):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
        environment |= {"OMP_NUM_THREADS": str(settings["threads"]), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self.name = configuration
        self.process = subprocess.Popen(
            [sys.executable, "-m", "knltrain.bench.torch_process", json.dumps(settings), configuration],
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


def main(settings: dict, configuration: str):
    """Answer each line of stdin, a number of steps, with a line of JSON: seconds and peak memory."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints may come between

    def answer(**what):
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        import torch

        from .torch_models import Trainer

        torch.set_num_threads(settings["threads"])
        layout, mode = configuration.split("-")
        names = ("model", "classes", "slot_batch", "size", "lr", "momentum", "weight_decay")
        trainer = Trainer(
            **{name: settings[name] for name in names},
            channels_last=layout == "channels_last",
            compiled=mode == "compiled",
        )
        for _ in range(WARM_UP_STEPS):
            trainer.step()
    except Exception as error:  # whatever it is belongs in the table
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return answer(error=f"{type(error).__name__}: {lines[0] if lines else ''}"[:200])
    answer(version=torch.__version__)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            trainer.step()
        answer(seconds=time.perf_counter() - start, peak_memory_bytes=peak_memory_bytes())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
