"""Runs commands of minisft that die on purpose: `python deaths.py` reads a job a line from stdin.

A job is JSON: {"argv": [...], "folder": DIR, "event": N, "limit": BYTES}. The command dies without
any clean-up (`os._exit`) right before its N-th file event below the folder: a file opened to
write, renamed, removed or truncated, a folder made or removed. With `limit` the kernel ends it in
the middle of the write that makes a file larger (Linux). The answer is JSON, too: {"code": exit
code or minus the signal, "events": how many there were, "output": both streams}.

This process imports the package once and forks for each job; it computes nothing itself, so no
thread is lost in the fork.
"""

import json
import os
import resource
import signal
import sys
import tempfile

from minisft.cli import main

DIED = 99
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}


def watch(folder, last, count):
    """Counts the file events below the folder into count[0], and dies at the last-th."""
    def hook(event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (
            os.O_WRONLY | os.O_RDWR)
        if not (writes or event in EVENTS):
            return
        path = args[0]
        if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(folder):
            count[0] += 1
            if count[0] == last:
                report(count)
                os._exit(DIED)

    sys.addaudithook(hook)


def report(count):
    os.lseek(EVENT_COUNT, 0, os.SEEK_SET)
    os.write(EVENT_COUNT, b"%8d" % count[0])


def child(job, output):
    os.dup2(output, 1), os.dup2(output, 2)
    if job.get("limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)     # Python ignores it: an OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))
    if job.get("full"):     # the same as a full disk: every write beyond is refused
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["full"], resource.RLIM_INFINITY))
    count = [0]
    watch(os.path.abspath(job["folder"]), job.get("event", 0), count)
    code = main(job["argv"])
    report(count)
    return code


if __name__ == "__main__":
    EVENT_COUNT = os.memfd_create("events")
    import minisft.evaluation.report
    import minisft.jobs.curve
    import minisft.jobs.pretrain
    import minisft.jobs.seeds  # noqa: F401
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            os.pwrite(EVENT_COUNT, b"%8d" % 0, 0)
            pid = os.fork()
            if pid == 0:
                code = 70     # what is raised beyond `main`: a traceback is in the output
                try:
                    code = child(json.loads(line), output.fileno())
                except BaseException:
                    import traceback
                    os.write(output.fileno(), traceback.format_exc().encode())
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            output.seek(0)
            print(json.dumps({"code": code, "events": int(os.pread(EVENT_COUNT, 8, 0)),
                              "output": output.read().decode(errors="replace")}), flush=True)
