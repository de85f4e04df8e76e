"""Runs commands of minisft that die on purpose: `python deaths.py` reads a job a line from stdin.

A job is JSON: {"argv": [...], "folder": DIR} and how it dies:

- "event": N. Without any clean-up (`os._exit`), right before its N-th file event below the folder:
  a file opened to write, renamed, removed or truncated, a folder made or removed.
- "event": N, "power": true. The same, and what was not synced by then is lost (disk.py).
- "seconds": S. By SIGKILL, so long after its start.
- "limit": BYTES. The kernel ends it in the middle of the write that makes a file larger (Linux).
- "full": BYTES. It need not die: every write beyond is refused, as on a full disk.

"plant" names a fault (faults.py) that the harness must find; "pictures": false writes other bytes
in the place of drawn pictures, which take most of the time of a small run. The answer is JSON, too:
{"code": exit code or minus the signal, "events": how many there were, "lost": files that a power
cut took although they had been replaced whole, "seconds": what it took, "output": both streams}.

This process imports the package once and forks for each job; it computes nothing itself, so no
thread is lost in the fork.
"""

import json
import os
import resource
import select
import signal
import sys
import time

from disk import Disk
from faults import FAULTS

from minisft.cli import main
from minisft.evaluation import plots
from minisft.io.files import atomic_write

DIED = 99
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link",
          "shutil.rmtree"}


def watch(folder, last, count, disk):
    """Counts the file events below the folder into count[0], and dies at the last-th."""
    def hook(event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (
            os.O_WRONLY | os.O_RDWR)
        if not (writes or event in EVENTS):
            return
        path = args[0]
        if not isinstance(path, str | os.PathLike) or disk is not None and disk.at_work:
            return
        if os.path.abspath(path).startswith(folder):
            count[0] += 1
            if count[0] == last:
                report(count[0], [] if disk is None else disk.lose())
                os._exit(DIED)
            if disk is not None:
                disk.before(event, args)

    sys.addaudithook(hook)


def report(events, lost=()):
    os.ftruncate(REPORT, 0)
    os.pwrite(REPORT, json.dumps({"events": events, "lost": lost}).encode(), 0)


def not_drawn(figure, path):
    with atomic_write(path) as file:
        file.write(bytes(20_000))


def child(job, output):
    os.dup2(output, 1), os.dup2(output, 2)
    if job.get("limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)     # Python ignores it: an OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))
    if job.get("full"):     # the same as a full disk: every write beyond is refused
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["full"], resource.RLIM_INFINITY))
    count, folder = [0], os.path.abspath(job["folder"])
    disk = Disk(folder) if job.get("power") else None
    if job.get("pictures") is False:
        plots._save = not_drawn
    if job.get("plant"):
        FAULTS[job["plant"]]()
    watch(folder, job.get("event", 0), count, disk)
    code = main(job["argv"])
    report(count[0])
    return code


def run(job):
    """Forks for the job -> its answer."""
    report(0)
    output, end = os.pipe()      # no file: no limit of a file's size counts for it
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 70     # what is raised beyond `main`: a traceback is in the output
        try:
            code = child(job, end)
        except BaseException:
            import traceback
            os.write(end, traceback.format_exc().encode())
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    os.close(end)
    said, death = b"", job.get("seconds")
    while True:
        left = death and max(0, started + death - time.perf_counter())
        if select.select([output], [], [], left)[0]:
            if not (some := os.read(output, 65536)):
                break
            said += some
        else:
            os.kill(pid, signal.SIGKILL)
            death = None
    os.close(output)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(os.pread(REPORT, 1_000_000, 0)) | {
        "code": code, "seconds": time.perf_counter() - started,
        "output": said.decode(errors="replace")}


if __name__ == "__main__":
    REPORT = os.memfd_create("report")
    import minisft.evaluation.report
    import minisft.jobs.curve
    import minisft.jobs.pretrain
    import minisft.jobs.seeds  # noqa: F401
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
