"""A real SLURM on one machine: munge, one slurmctld and a slurmd per emulated KNL node, as children of the tests.

Started by hand instead of by systemd, all under one folder; nothing of /etc is touched. As root every node has its own
host name, /dev/shm and /tmp/… through namespaces; elsewhere all nodes share them. The daemons stay in the foreground
with a death signal, so that none outlives the tests, however those end.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"

CONF = """
ClusterName=emulated
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SwitchType=switch/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PropagateResourceLimitsExcept=MEMLOCK
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=10
KillWait=5
JobRequeue=1
FirstJobId={first_job}
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=DEFAULT Sockets=1 CoresPerSocket=68 ThreadsPerCore=4 RealMemory=96000 TmpDisk=100000 Feature=knl,quad,cache
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in DAEMONS if not shutil.which(name, path=PATH)]
    return f"no {', '.join(absent)} (Debian: apt-get install munge slurmctld slurmd slurm-client)" if absent else None


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Cluster:
    """`nodes` running nodes knl001, knl002, … of `declared`; a context manager."""

    def __init__(self, folder: Path, nodes: int = 4, declared: int = 0):
        self.folder, self.names = Path(folder), [f"knl{i:03}" for i in range(1, nodes + 1)]
        self.port = _free_ports(2 + nodes)
        self.env = os.environ | {"PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.env = {k: v for k, v in self.env.items() if k == "SLURM_CONF" or not k.startswith(("SLURM", "SBATCH"))}
        # MPICH over UCX: its addresses are sometimes too long for a line of SLURM's pmi2; a start in four then fails
        self.env |= {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
        self.daemons = {}
        self.conf = self._conf(nodes, max(nodes, declared))

    def _conf(self, nodes, declared) -> str:
        host, user = socket.gethostname().partition(".")[0], _user()
        facts = {"host": host, "user": user, "port": self.port, "folder": self.folder}
        lines = [CONF.format(first_job=int(time.time()) % 6_000_000 * 10 + 1, **facts)]
        for i, name in enumerate(self.names):
            lines.append(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + 1 + i}")
        if declared > nodes:
            ports = f"[{self.port + 1 + nodes}-{self.port + declared}]"
            rest = f"NodeName=knl[{nodes + 1:03}-{declared:03}] NodeHostname={host} NodeAddr=127.0.0.1"
            lines.append(f"{rest} Port={ports} State=DOWN Reason=declared-only")
        common = "Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE"
        lines.append(f"PartitionName=main Default=YES PriorityTier=1 GraceTime=20 {common}")
        lines.append(f"PartitionName=urgent PriorityTier=2 {common}")
        return "\n".join(lines) + "\n"

    # ---- up and down -----------------------------------------------------------------------------------------

    def __enter__(self):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends the tests: __exit__ still runs
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _up(self):
        for name in ("state", "local", *(f"{kind}-{n}" for n in self.names for kind in ("spool", "tmp", "local"))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "slurm.conf").write_text(self.conf)
        names = " ".join(["localhost", socket.gethostname(), *self.names])
        (self.folder / "hosts").write_text(f"127.0.0.1 {names}\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        at = str(self.folder)
        munged = ["munged", "--foreground", "--force", f"--socket={at}/munge.sock", f"--key-file={key}"]
        munged += [f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed"]
        self._start("munged", munged)
        _until(lambda: (self.folder / "munge.sock").exists(), 60, "munge")
        self._start("slurmctld", ["slurmctld", "-D"])
        for name in self.names:
            self.start_node(name)
        idle = ("sinfo", "-hN", "-p", "main", "-t", "idle", "-o", "%N")
        _until(lambda: self.run(*idle).split() == self.names, 90, "the nodes")

    def _start(self, name, command):
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent
            )

    def start_node(self, name):
        """Start a node's slurmd, as root in namespaces of its own."""
        command = ["slurmd", "-D", "-N", name]
        if os.geteuid() == 0:
            script = (
                'hostname "$1"; mount --bind "$2/hosts" /etc/hosts; '
                "mount -t tmpfs -o size=4g,mode=1777 tmpfs /dev/shm; "
                'mount --bind "$2/local-$1" "$2/local"; exec slurmd -D -N "$1"'
            )
            command = ["unshare", "--uts", "--mount", "--propagation", "slave", "sh", "-ec", script, "-"]
            command += [name, str(self.folder)]
        self._start(name, command)

    def __exit__(self, *error):
        if self.daemons.get("slurmctld") and self.daemons["slurmctld"].poll() is None:
            subprocess.run(["scancel", "-Q", "-u", _user()], env=self.env, timeout=20, check=False)
            time.sleep(0.5)
        for name in (*self.names, "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
        for pid in self._processes():
            _kill(pid)
        for daemon in self.daemons.values():
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self._processes():
            _kill(pid)

    def kill_node(self, name):
        """The node dies: its slurmd, its steps and their tasks get SIGKILL; slurmctld is told, else it waits."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()
        for pid in self._processes(name):
            _kill(pid)
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def _processes(self, node: str | None = None) -> list[int]:
        """Steps and tasks of this cluster, by their environment; with `node` only that one's."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "environ").read_bytes().split(b"\0")
                name = (folder / "comm").read_text().strip()
                if f"SLURM_CONF={self.folder}/slurm.conf".encode() not in words or int(folder.name) == os.getpid():
                    continue
                step = name.startswith("slurmstepd")
                here = node is None or f"SLURMD_NODENAME={node}".encode() in words
                here = here or (step and any(_log_of(folder, self.folder / f"{node}.log")))
                if here and (step or any(word.startswith(b"SLURM_JOB_ID=") for word in words)):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    # ---- asking ----------------------------------------------------------------------------------------------

    def run(self, *command, timeout=60, env=None, check=True) -> str:
        """stdout of a SLURM command."""
        result = subprocess.run(
            command, env=self.env | (env or {}), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def submit(self, *arguments, env=None, cwd=None) -> str:
        """`sbatch ARGUMENTS`; returns the job id."""
        environment = self.env | (env or {})
        command = ["sbatch", "--parsable", *arguments]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, cwd=cwd)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
        return result.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by key."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, states=("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"), timeout=600) -> str:
        """Wait until the job is in one of the states; returns it."""
        _until(lambda: self.job(job)["JobState"] in states, timeout, f"job {job} to be {' or '.join(states)}")
        return self.job(job)["JobState"]

    def start_now(self, job: str, *more):
        """Cut the two minutes for which SLURM holds a requeued job back."""

        def requeued():
            facts = self.job(job)
            return facts["JobState"] == "PENDING" and int(facts["Restarts"]) > 0

        _until(requeued, 180, f"job {job} to be requeued")
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2", *more)


def _log_of(process: Path, log: Path):
    for link in (process / "fd").iterdir():
        yield os.readlink(link) == str(log)


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _user():
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def _free_ports(count):
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(16817 + os.getpid() % 1000 * 20, 60000, 40):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", first + i)) for i in range(count)):
                return first
    raise RuntimeError("no free ports")


def _until(condition, timeout, what):
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.1)
