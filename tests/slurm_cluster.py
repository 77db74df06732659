"""A Slurm of one node on this machine, for as long as a command runs:

    python tests/slurm_cluster.py python -m pytest -m slurm

Needs root and Debian's packages slurm-wlm and munge. Everything it writes lies in a folder of its own, which goes with
it; a Slurm that this machine may have otherwise is left alone.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

CPUS = 6  # that Slurm believes in: jobs of tests wait more than they compute
_DAEMONS = ("munged", "slurmctld", "slurmd")
_TIMEOUT = 300.0

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
# How many seconds a job that is requeued waits: 120 unless said otherwise, and less than 5 is no answer.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=15
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """What keeps a Slurm from being started here; None where nothing does."""
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    lacking = [name for name in _DAEMONS if _program(name) is None]
    return f"{', '.join(lacking)} not installed (apt-get install slurm-wlm munge)" if lacking else None


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A running Slurm; the environment that leads its commands to it."""
    with ExitStack() as stack:
        # Slurm's daemons run as root, and want nobody else to be able to write where they do.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=_free_ports(2), cpus=CPUS))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        munged = ["--force", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket"]
        munged += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
        for name, options in (("munged", munged), ("slurmctld", ["-D", "-c"]), ("slurmd", ["-D", "-c"])):
            stack.enter_context(_daemon(name, options, environment, folder))
            if name == "munged":
                _until(lambda: (folder / "munge.socket").exists(), "munged", folder)
        _until(lambda: "idle" in _asked(["sinfo", "--noheader", "--format=%t"], environment), "node", folder)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], env=environment, check=False)
            _until(lambda: not _asked(["squeue", "--noheader"], environment), "queue", folder)


def main(command: Sequence[str]) -> int:
    """Run a command beside a Slurm; its exit code."""
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    with cluster() as environment:
        return subprocess.run(command, env=environment, check=False).returncode


@contextmanager
def _daemon(name: str, options: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{name}.out").open("w") as output:
        process = subprocess.Popen(
            [str(_program(name)), *options],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the command; daemons follow when it has ended
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(true, what: str, folder: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not true():
        if time.monotonic() > deadline:
            said = "\n".join(
                f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.[lo][ou][gt]"))
            )
            raise RuntimeError(f"the {what} did not get ready within {_TIMEOUT:g} s\n{said}")
        time.sleep(0.2)


def _asked(command: Sequence[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
