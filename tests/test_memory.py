"""What calls take of the memory: nothing inside a parallel region, and little that is kept for the next call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINUX = sys.platform == "linux"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Allocations of threads other than the first: those of a parallel region, where nobody else starts any. */
static long count;
long allocations(void) { return __atomic_load_n(&count, __ATOMIC_RELAXED); }
static void add(void) {
  if (syscall(SYS_gettid) != getpid()) __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
}

#define NEXT(type, name) static type next; if (!next) next = (type)dlsym(RTLD_NEXT, name)
typedef void *(*one)(size_t);
typedef void *(*two)(size_t, size_t);
void *malloc(size_t n) { NEXT(one, "malloc"); add(); return next(n); }
void *aligned_alloc(size_t a, size_t n) { NEXT(two, "aligned_alloc"); add(); return next(a, n); }
"""

CALLS = """
import ctypes, threading
import numpy as np
import rnnfast as rf

rf.set_num_threads(2)
count = ctypes.CDLL(None).allocations
x, lengths = np.ones((40, 60, 24), np.float32), np.full(60, 40)
lengths[::3] = 17
resets = np.zeros((40, 60), bool)
resets[11, ::7] = True
layers = [
    rf.RNN(24, 40), rf.GRU(24, 40, reset_after=False), rf.LSTM(24, 40, peephole=True, zoneout=0.1),
    rf.LSTM(24, 40, proj_size=17, recurrent_dropout=0.2), rf.LSTM(24, 40, layer_norm=True),
    rf.GRU(24, 40, compute_dtype="bfloat16"), rf.SLSTM(24, 40, num_heads=4), rf.SRU(24, 40), rf.MinLSTM(24, 40),
    rf.Linear(24, 900),
]
head, targets = rf.SoftmaxHead(24, 900), np.ones((40, 60), int)
network = rf.EchoState(24, 300, seed=0)

def everything():
    for layer in layers:
        for rows in (60, 2):
            some = {"lengths": lengths[:rows], "resets": resets[:, :rows]}
            y, _, tape = layer.forward(x[:, :rows], **some)
            layer.backward(tape, y)
            layer(x[:, :rows], **some)
    head.loss_and_grad(x, targets)
    network(x)

everything()
before = count()
everything()
found = count() - before
other = threading.Thread(target=lambda: np.ones(1000))
other.start(), other.join()
assert count() > before + found  # it does count
print(found)
"""


@pytest.mark.skipif(not LINUX or COMPILER is None, reason="it takes Linux and a C compiler to count allocations")
def test_nothing_is_allocated_in_a_parallel_region(tmp_path: Path) -> None:
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, env={**os.environ, "LD_PRELOAD": str(library)}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0


KEPT = """
import re
from pathlib import Path
import numpy as np
import rnnfast as rf

def resident():
    return 1024 * int(re.search(r"^VmRSS:\\s+(\\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

layer = rf.LSTM(8, 256, seed=0)
layer(np.zeros((1, 1, 8), np.float32))
before = resident()
for steps in (50, 100, 200, 400):
    y, _, tape = layer.forward(np.zeros((steps, 1000, 8), np.float32))
    del y, tape
print(resident() - before)
"""


@pytest.mark.skipif(not LINUX, reason="resident memory is read from /proc")
def test_at_most_256_mib_of_freed_memory_are_kept() -> None:
    """The last of the calls took 2.4 GB."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < (256 + 32) << 20


REUSED = """
import resource
import numpy as np
import rnnfast as rf

def call(steps):
    layer.forward(x[:steps])

layer, x = rf.LSTM(8, 256, seed=0), np.zeros((400, 100, 8), np.float32)
for steps in 300, 20, 31, 44, 63, 90, 130, 190, 260:  # 200 MB at most, 700 MB together: more than is kept
    call(steps)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call(400)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

call(400)
print(min(faults() for _ in range(3)))  # now and then the system takes a page of any process
"""


@pytest.mark.skipif(not LINUX, reason="page faults are counted as Linux does")
def test_a_call_reuses_the_memory_of_the_one_before_whatever_came_earlier() -> None:
    """The call takes 246 MB, 117 large pages or 60,000 small ones."""
    done = subprocess.run([sys.executable, "-c", REUSED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10
