"""A Slurm of one node on loopback, all of it under one folder."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
MaxArraySize={max_array}
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes={host} MaxTime=INFINITE State=UP
"""


class Slurm:
    """Started on entering, in `folder`; its commands find it through the environment variable SLURM_CONF.

    The node says it has `cpus` processors, whatever the machine's, so that many tasks start at once.
    """

    def __init__(self, folder, cpus=8, max_array=1001):
        self.folder, self.host = Path(folder), socket.gethostname().split(".")[0]
        self.cpus, self.max_array = cpus, max_array
        self.running = {}

    @staticmethod
    def missing():
        """Which of its programs are not installed."""
        return [name for name in (*DAEMONS, "sbatch") if not _find(name)]

    def __enter__(self):
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        ports = [_free_port() for _ in range(2)]
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(CONF.format(
            host=self.host, folder=self.folder, controller=ports[0], daemon=ports[1], cpus=self.cpus,
            max_array=self.max_array,
        ))  # fmt: skip
        for number in range(4):  # what stands for a GPU need only be a file
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-3]\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        os.environ["SLURM_CONF"] = str(self.conf)
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                        f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                        f"--seed-file={self.folder}/munged.seed")  # fmt: skip
            self.until(lambda: (self.folder / "munge.socket").exists(), "munged's socket")
            self._start("slurmctld", "-D", "-f", self.conf)
            self._start("slurmd", "-D", "-f", self.conf, "-N", self.host)
            self.until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), "an idle node", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        if "slurmctld" in self.running:
            self.run("scancel", "--user=root", "--signal=KILL", check=False)
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        os.environ.pop("SLURM_CONF", None)

    def _start(self, name, *words):
        with (self.folder / f"{name}.out").open("w") as out:
            self.running[name] = subprocess.Popen(
                [_find(name), *map(str, words)], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def run(self, *words, check=True):
        """Output of one of Slurm's commands."""
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def queue(self):
        """State of every task that is in the queue, by its id."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def until(self, true, what, seconds=120):
        """Wait until `true()`; fails with the daemons' logs."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                logs = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log"))]
                raise AssertionError(f"waited {seconds} s for {what}\n" + "\n".join(logs))
            time.sleep(0.2)


def _find(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
