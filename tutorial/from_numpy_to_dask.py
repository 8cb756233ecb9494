"""
From a NumPy loop to Dask, in five stages
=========================================

This tutorial is for people who know NumPy and scikit-learn and have a loop that is too large for one array or one
machine. It takes such a loop, SAGA for logistic regression, to a Dask cluster with ``dask.delayed``. It has five
stages. Each stage is executed, and we measure the share of the time in which a worker computes. In 2018 a researcher
and a Dask developer `did the same <https://blog.dask.org/2018/08/07/incremental-saga>`_ in an afternoon, and
``dask_saga`` grew out of it. No knowledge of Dask is assumed.

To run the tutorial yourself, download the notebook from the bottom of this page. All sections but the last need only

.. code-block:: none

    pip install jupyterlab numpy scipy numba matplotlib "dask[distributed,diagnostics]"

As a plain script it stops with ``RuntimeError: An attempt has been made to start a new process...``. The reason is that
the workers of a cluster are processes that import the script that started them, and each would start a cluster again.
In a script of your own, put everything except imports and functions under ``if __name__ == "__main__":``.
"""

import time
from pathlib import Path

import dask
import matplotlib.pyplot as plt
import numpy as np
from dask.distributed import Client, get_task_stream
from dask.utils import key_split
from numba import njit

# %%
# The data are eight *chunks* of 100,000 rows. A chunk is a pair of rows ``A`` and labels ``b``, which are -1 or 1. A
# function creates a chunk, so that later each worker can create its own. The function gets everything it needs,
# including the seed, so it returns the same chunk whenever it is called.

CHUNKS, ROWS, COLUMNS, PASSES = 8, 100_000, 20, 6


def make_chunk(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((ROWS, COLUMNS))
    noise = 2 * rng.standard_normal(ROWS)
    return A, np.where(A @ np.linspace(-1, 1, COLUMNS) + noise > 0, 1.0, -1.0)


# %%
# How a stage is measured
# -----------------------
#
# For each piece of work we record what it was, where it ran, when it started and when it stopped, and draw it as a bar.
# Dask calls this a *task stream* and records it for us from stage 3 on. Until then the function ``recorded`` does it. The
# *busy fraction* is the share of the time in which at least one worker has a bar. The rest is waiting.


def recorded(bars, function, *arguments):
    """Call the function and add its bar: name, place, start, stop."""
    start = time.time()
    result = function(*arguments)
    bars.append((function.__name__, "this process", start, time.time()))
    return result


def busy_fraction(bars):
    busy, reached = 0.0, -np.inf
    for _, _, start, stop in sorted(bars, key=lambda bar: bar[2]):
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return busy / (reached - min(bar[2] for bar in bars))


def draw(bars, title, seconds=None):
    """Draw one row per worker, one colour per kind of work, and the busy fraction.

    With `seconds`, draw only the last seconds.
    """
    end = max(bar[3] for bar in bars)
    begin = min(bar[2] for bar in bars) if seconds is None else end - seconds
    workers = sorted({bar[1] for bar in bars})
    names = sorted(
        {bar[0] for bar in bars if bar[2] >= begin},
        key=lambda name: ("visit" not in name, name),
    )
    figure, ax = plt.subplots(
        figsize=(9, 0.9 + 0.5 * len(workers)), layout="constrained"
    )
    for k, name in enumerate(names):
        shown = [bar for bar in bars if bar[0] == name and bar[2] >= begin]
        ax.barh(
            [workers.index(bar[1]) for bar in shown],
            [bar[3] - bar[2] for bar in shown],
            left=[bar[2] - begin for bar in shown],
            color=f"C{k}",
            label=name,
        )
    ax.set(
        title=f"{title}: busy {busy_fraction(bars):.0%}",
        xlabel="seconds",
        yticks=range(len(workers)),
    )
    ax.set_yticklabels(
        [f"worker {k + 1}" for k in range(len(workers))]
        if len(workers) > 1
        else workers
    )
    figure.legend(loc="outside right upper", fontsize="small")


# %%
# Stage 1: a function of arrays
# -----------------------------
#
# SAGA is the algorithm behind ``LogisticRegression(solver="saga")``. It finds the coefficients ``x`` that minimise the
# mean of ``log(1 + exp(-b * (A @ x)))``; here there is no penalty and no intercept. It visits one row after the other. For
# each row it stores the derivative of the loss at the last visit (the *memory*). It also stores the average gradient,
# which is the average over all rows of the derivative in the memory times the row. A step follows the average gradient
# plus the change of the gradient at the current row. Near the optimum these changes vanish, and with them the noise of
# single rows. So the step size can stay constant.
#
# A loop over rows is far too slow in Python, so ``njit`` of numba compiles it to machine code. ``nogil`` lets other threads
# of the process run at the same time. A worker has such threads, which communicate with the rest of the cluster.


@njit(nogil=True)
def visit_rows(A, b, order, n, x, memory, average, step):
    for i in order:
        margin = b[i] * np.dot(A[i], x)
        derivative = -b[i] / (1.0 + np.exp(margin))
        change = derivative - memory[i]
        for j in range(A.shape[1]):
            x[j] -= step * (change * A[i, j] + average[j])
            average[j] += change * A[i, j] / n
        memory[i] = derivative


def step_size(A):
    """1 / (3 L) as in the paper; L bounds the Lipschitz constant of each row."""
    return 1 / (3 * 0.25 * (A**2).sum(axis=1).max())


def saga_1(A, b, passes):
    rng = np.random.default_rng(0)
    n, p = A.shape
    x, memory, average = np.zeros(p), np.zeros(n), np.zeros(p)
    step, bars = step_size(A), []
    for _ in range(passes):
        order = recorded(bars, rng.permutation, n)
        recorded(bars, visit_rows, A, b, order, n, x, memory, average, step)
        print(f"norm of the average gradient: {np.linalg.norm(average):.1e}")
    return x, bars


# %%
# numba compiles a function at its first call, which takes about a second. A call with two rows makes it compile now;
# stage 5 returns to this. Then all rows go into one array.


def compile_loop():
    rows, labels, order = np.zeros((2, COLUMNS)), np.ones(2), np.arange(2)
    x, memory, average = np.zeros(COLUMNS), np.zeros(2), np.zeros(COLUMNS)
    visit_rows(rows, labels, order, 2, x, memory, average, 0.1)


compile_loop()
chunks = [make_chunk(k) for k in range(CHUNKS)]
A = np.concatenate([A for A, _ in chunks])
b = np.concatenate([b for _, b in chunks])
x_1, bars = saga_1(A, b, PASSES)
draw(bars, "Stage 1, one array, one thread")

# %%
# The printed number is the norm of the average gradient, which goes to zero at the optimum. The first pass consists of
# plain stochastic gradient steps, because the memory is still empty.
#
# **What to learn.** A busy fraction of about 100 % says that the thread always has something to do. This is the reference
# for the next stages. But there is one array and one thread, and ``visit_rows`` writes into its arguments. That is fast,
# and it works as long as one process holds everything. For a cluster it has to change.
#
# Stage 2: a list of chunks, and pure functions
# ---------------------------------------------
#
# This stage does not use Dask yet, but it gives the loop the form that Dask needs. The data become a list of chunks. The
# work on one chunk becomes a function that takes at least some milliseconds. This function is *pure*: it writes to copies,
# draws its random order from a seed that it is given, and returns everything that has changed. So it does not
# matter where it runs, or whether it has to run again because a machine was lost.


def visit(A, b, n, x, memory, average, step, seed):
    x, memory, average = x.copy(), memory.copy(), average.copy()
    order = np.random.default_rng(seed).permutation(len(b))
    visit_rows(A, b, order, n, x, memory, average, step)
    return x, memory, average


def new_order(k):
    """Order of the chunks in pass k.

    With the same order in each pass SAGA would circle the optimum for long.
    """
    return np.random.default_rng(k).permutation(CHUNKS)


def saga_2(chunks, passes):
    n = sum(len(b) for _, b in chunks)
    x, average = np.zeros(COLUMNS), np.zeros(COLUMNS)
    memories = [np.zeros(len(b)) for _, b in chunks]
    step = min(step_size(A) for A, _ in chunks)
    bars = []
    for k in range(passes):
        for i in new_order(k):
            A, b = chunks[i]
            x, memories[i], average = recorded(
                bars, visit, A, b, n, x, memories[i], average, step, [k, i]
            )
        print(f"norm of the average gradient: {np.linalg.norm(average):.1e}")
    return x, bars


x, bars = saga_2(chunks, PASSES)
draw(bars, "Stage 2, pure functions, no Dask")

# %%
# The visits of SAGA form a chain: each starts from the coefficients of the one before. So at most one worker can be busy
# at any time, however many there are. With such a chain the best a cluster can reach is 100 %, one bar at a time. What a
# cluster adds is memory, because each worker holds some of the chunks.
#
# **What to learn.** Pure functions copy a few coefficients and one number per row. This takes little time, and there
# are hardly any gaps. But this is not quite the algorithm of stage 1: a visit makes many steps in the same chunk, and in
# the end it needs more passes. The last section measures how many, and what helps.
#
# Stage 3: ``dask.delayed``, the obvious way
# ------------------------------------------
#
# A ``Client`` without an address starts a small cluster on this machine. The cluster has a *scheduler*, which decides what
# has to be done, and *workers*, which do it; here these are two processes with one thread each. With the address of a cluster of many
# machines the same code runs there. Dask sends all computations below to the client that was created last. Its
# *dashboard* is a web page that draws the task stream while it grows; ``":0"`` selects a free port. Open the
# link next to this page.

client = Client(
    n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="ERROR"
)
print(f"its dashboard: {client.dashboard_link}")

# %%
# ``dask.delayed`` turns a function into one that does not compute yet. A call returns a ``Delayed``, which is a note that
# this function has to be called with these arguments. Such a call is a *task*. ``dask.compute(note, ...)``, or
# ``note.compute()`` for a single one, sends notes to the scheduler, waits, and returns the values. The function and its
# arguments are sent along, so workers need not have your code.
#
# A ``Delayed`` keeps no value. If it is computed twice, the work is done twice. To avoid this for the data, we pass them to
# ``dask.persist``. It starts the computation, leaves the values on the workers, and returns at once with new ``Delayed``
# objects that *refer* to these values. ``nout=2`` tells Dask that the function returns two things, so that we can write
# ``A, b`` before they exist.

# Each worker is a separate process and has to compile the loop itself.
# client.run calls a function once on every worker.
client.run(compile_loop)

chunks = list(
    dask.persist(*(dask.delayed(make_chunk, nout=2)(k) for k in range(CHUNKS)))
)

# %%
# The obvious next step is to delay ``visit`` and to compute it. Everything inside ``with get_task_stream(...)`` is
# recorded.


def saga_3(chunks, passes):
    n = CHUNKS * ROWS
    x, average = np.zeros(COLUMNS), np.zeros(COLUMNS)
    memories = [np.zeros(ROWS) for _ in chunks]
    step = min(step_size(A.compute()) for A, _ in chunks)  # here
    for k in range(passes):
        for i in new_order(k):
            A, b = chunks[i]
            task = dask.delayed(visit)(A, b, n, x, memories[i], average, step, [k, i])
            x, memories[i], average = task.compute()  # and here
        print(f"norm of the average gradient: {np.linalg.norm(average):.1e}")
    return x


def to_bars(stream):
    """The task stream that Dask recorded, as bars: what was computed, where and when."""
    return [
        (key_split(task["key"]), task["worker"], part["start"], part["stop"])
        for task in stream.data
        for part in task["startstops"]
        if part["action"] == "compute"
    ]


with get_task_stream(client) as stream:
    x = saga_3(chunks, PASSES)
bars = to_bars(stream)
draw(bars, "Stage 3, delayed the obvious way", seconds=2)

# %%
# It works: the norms agree with those of stage 2 in every digit. But there is a gap after each bar, in which the workers
# wait for the client, the process in which you type. (The picture shows the last two seconds. ``getitem`` is the small
# task that takes ``A`` or ``b`` out of the result of ``make_chunk``.) The two lines marked *here* cause the gaps. The first
# fetches every chunk, only to find the length of its longest row. The second waits for each visit, brings its results to
# the client, and sends them out again with the next visit.
#
# **What to learn.** A gap between bars is work or communication at the client. Look for ``compute`` in a loop, and for
# values that are sent out as arguments just after they have come back.
#
# Stage 4: delayed everywhere
# ---------------------------
#
# The result of a task can be an argument of the next task *without* being computed first. A ``Delayed`` can be passed on, and
# so can a list of them. Dask calls the function when all its arguments have values, and sends these from worker to
# worker where needed. So we keep the coefficients, the memories and the step delayed from beginning to end, and only one
# number per pass comes back. Since a ``Delayed`` keeps no value, the norm of the second pass would compute the first
# pass again, and the norm of the third both of them. ``persist`` prevents this. It starts all visits of a pass and leaves
# their values on the workers, and the next pass refers to these values.


def norm(x):
    return float(np.linalg.norm(x))


def saga_4(chunks, passes):
    n = CHUNKS * ROWS
    x, average = dask.delayed(np.zeros)(COLUMNS), dask.delayed(np.zeros)(COLUMNS)
    memories = [dask.delayed(np.zeros)(ROWS) for _ in chunks]
    step = dask.delayed(min)([dask.delayed(step_size)(A) for A, _ in chunks])
    for k in range(passes):
        for i in new_order(k):
            A, b = chunks[i]
            task = dask.delayed(visit, nout=3)(
                A, b, n, x, memories[i], average, step, [k, i]
            )
            x, memories[i], average = task
        x, average, step, size, *memories = dask.persist(
            x, average, step, dask.delayed(norm)(average), *memories
        )
        print(f"norm of the average gradient: {size.compute():.1e}")
    return x.compute()


with get_task_stream(client) as stream:
    x = saga_4(chunks, PASSES)
bars = to_bars(stream)
draw(bars, "Stage 4, delayed everywhere", seconds=2)

# %%
# The bars are now close together. The visits of a pass follow each other without the client. Dask runs a task where the
# larger part of its arguments is, so the coefficients travel and the rows stay. One gap per pass remains; it comes from
# the number that we print.
#
# There are more tasks than visits, because ``nout=3`` adds a small task for each part of the returned tuple:

names = [name for name, *_ in bars]
{name: names.count(name) for name in sorted(set(names))}

# %%
# Each of these small tasks delays the chain. So we pass the tuple on as a whole. The next visit takes what it needs from
# the result of the visit before, and from the result of its own chunk in the last pass.


def visit_whole(A, b, n, previous, own, step, seed):
    x, _, average = previous
    memory = np.zeros(len(b)) if own is None else own[1]
    return visit(A, b, n, x, memory, average, step, seed)


def norm_of_average(result):
    return float(np.linalg.norm(result[2]))


def saga_4_whole(chunks, passes):
    n = CHUNKS * ROWS
    previous = np.zeros(COLUMNS), None, np.zeros(COLUMNS)
    own = [None] * CHUNKS
    step = dask.delayed(min)([dask.delayed(step_size)(A) for A, _ in chunks])
    for k in range(passes):
        for i in new_order(k):
            A, b = chunks[i]
            previous = dask.delayed(visit_whole)(
                A, b, n, previous, own[i], step, [k, i]
            )
            own[i] = previous
        size = dask.delayed(norm_of_average)(previous)
        step, size, previous, *own = dask.persist(step, size, previous, *own)
        print(f"norm of the average gradient: {size.compute():.1e}")
    return previous.compute()[0]


with get_task_stream(client) as stream:
    x = saga_4_whole(chunks, PASSES)
draw(to_bars(stream), "Stage 4, results handed on whole", seconds=2)

# %%
# **What to learn.** Keep values delayed. Persist what is needed again. Bring back only what a person or a decision needs,
# and do so rarely. Each task costs about a millisecond of scheduling and, in a chain, some more for communication, so it
# should take at least ten times as long. Do not take a result apart if the next task needs all of it.
#
# Stage 5: profile
# ----------------
#
# One more problem is hidden by ``client.run(compile_loop)``. On a new cluster without this call, the same code takes seconds
# longer.

client.close()
client = Client(
    n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="ERROR"
)
chunks = list(
    dask.persist(*(dask.delayed(make_chunk, nout=2)(k) for k in range(CHUNKS)))
)
with get_task_stream(client) as stream:
    x = saga_4_whole(chunks, PASSES)
draw(to_bars(stream), "Stage 5, new workers")

# %%
# The first visit of each worker takes longer than many later visits together. The workers are busy, but with what? Each
# worker samples a hundred times per second what it executes. ``client.profile()`` returns these samples as a tree of
# calls. A node has the number of its samples (``count``), the function (``description``), and the functions that it called
# (``children``). ``client.profile(filename="profile.html")`` draws the tree as a web page. We count the samples in
# numba and in the functions that it calls:


def samples(tree, package):
    """The number of samples with a function of this package on the stack."""
    if package in Path(tree["description"]["filename"]).parts:
        return tree["count"]
    return sum(samples(child, package) for child in tree["children"].values())


tree = client.profile()
compiling = samples(tree, "numba") / tree["count"]
print(f"{tree['count']} samples, {compiling:.0%} of them in numba's compiler")

# %%
# In its first visit each worker compiles the loop. The authors of 2018 also found this last. There are two remedies. One
# was used above: all workers compile at the same time before the chain begins. The other is ``njit(cache=True)`` in a
# module that all workers can import, instead of a notebook. Then the first process that compiles stores the machine code
# on disk, and all later processes on that machine load it.
#
# **What to learn.** A task stream shows *whether* workers are busy, and the profile shows *with what*.
#
# The same, ready to use
# ----------------------
#
# ``dask_saga`` (``pip install .`` in a clone of it) contains the result of these five stages and more. Its kernels are
# cached on disk, and each visit is one task that passes its result on as a whole. ``saga`` finds the client by itself. It
# takes the same list of chunks, where each chunk is a delayed pair:

from dask_saga import saga

pairs = [dask.delayed(make_chunk)(k) for k in range(CHUNKS)]
with get_task_stream(client) as stream:
    result = saga(pairs, max_iter=PASSES, random_state=0)
steps = ("saga-start", "saga-refine", "saga-memory", "saga-chunk")
draw(
    [bar for bar in to_bars(stream) if bar[0] in steps],
    "dask_saga.saga, its passes",
    seconds=1,
)

# %%
# Here there is no chain of visits. ``saga`` draws a subsample of the rows and finds new coefficients on it, in one small
# task (``saga-refine``). Then all chunks evaluate the exact gradient there in parallel (``saga-memory``). Visits in a
# chain, as above, follow only where the subsample is no longer accurate enough. The last step compares how far each
# stage got:


def total_loss(x, A, b):
    return np.logaddexp(0, -b * (A @ x)).sum()


def mean_loss(x):
    return sum(
        dask.compute(*(dask.delayed(total_loss)(x, A, b) for A, b in chunks))
    ) / (CHUNKS * ROWS)


best = mean_loss(saga(pairs, max_iter=20, random_state=1).x)
for name, found in (
    ("stage 1", x_1),
    ("stages 2 to 5", x),
    ("dask_saga.saga", result.x),
):
    gap = (mean_loss(found) - best) / (np.log(2) - best)
    print(
        f"{name}: suboptimality {gap:.0e} after {PASSES} passes, relative to zero coefficients"
    )

# %%
# :doc:`/algorithm/index` explains the step size and the averages that make the difference. ``SAGAClassifier`` does the
# same for a dask array or dataframe. Continue with the :doc:`/guide/index`, or look at the :doc:`/gallery/index`.

client.close()
