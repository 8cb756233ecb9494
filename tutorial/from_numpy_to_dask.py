"""
From a NumPy loop to Dask, in five stages
=========================================

You know NumPy and scikit-learn, and have a loop that is too large for one array or one machine. This page
takes such a loop, SAGA for logistic regression, to a Dask cluster with ``dask.delayed``. Each stage runs, and is
measured by the share of the time in which some worker computes. In 2018 a researcher and a Dask developer
`went the same way <https://blog.dask.org/2018/08/07/incremental-saga>`_ in an afternoon; ``dask_saga`` is
where it led. No knowledge of Dask is assumed.

To run it yourself, take the notebook from the bottom of this page. All but the last section needs only

.. code-block:: none

    pip install jupyterlab numpy scipy numba matplotlib "dask[distributed,diagnostics]"

As a plain script it stops with ``RuntimeError: An attempt has been made to start a new process...``: the workers of
a cluster are processes, each imports the script that started it, and would start a cluster as well. So a script of
your own has, below its imports and functions, ``if __name__ == "__main__":`` and under that all the rest.
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
# The data are eight *chunks* of 100,000 rows: pairs of rows ``A`` and labels ``b`` that are -1 or 1. A
# function makes them, so that later each worker can make its own. It is given all that it needs, the seed too:
# called twice, it returns the same.

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
# Note for each piece of work what it was, where it ran, when it started and when it stopped, and draw one bar each.
# Dask calls that a *task stream*, and will record it for us from stage 3 on; until then ``recorded`` does. The share
# of the time with a bar in it, on any worker, is the *busy fraction*; the rest is waiting.


def recorded(bars, function, *arguments):
    """Calls the function, and adds its bar: name, place, start, stop."""
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
    """One row a worker, one colour a kind of work; only the last seconds, if given. The title has the whole run's share."""
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
# SAGA is what ``LogisticRegression(solver="saga")`` runs. It finds the coefficients ``x`` at which the mean of
# ``log(1 + exp(-b * (A @ x)))`` is smallest; there is no penalty and no intercept here. It visits one row after the
# other. It keeps, for each row, the derivative of the loss that it saw there last (the *memory*), and the average of
# all rows' remembered gradients. A step follows that average, and the change at the row itself. Near the optimum
# these changes die out, and with them the noise of single rows, so the step size may stay constant. As a loop
# over rows this is far too slow in Python; numba's ``njit`` compiles it to machine code. ``nogil`` lets the other
# threads of the process go on meanwhile; a worker has some, that talk to the rest of the cluster.


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
    """1 / (3 L) as in the paper; the gradient of no row changes faster than L."""
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
# numba compiles a function when it is first called, for a second or so. Two rows are enough to make it do so now;
# stage 5 comes back to it. Then all rows go into one array.


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
# The printed norm is that of the average of all remembered gradients, and goes to zero at the optimum. The first pass is
# only one of plain stochastic steps, since nothing is remembered yet.
#
# **What to learn.** One thread has always something to do; that is all a busy fraction of about 100 % says, and it is the
# mark for the next stages. But there is one array, one thread, and ``visit_rows`` writes into its arguments. That is
# fast, and fine as long as one process holds everything. It is the first thing that has to go.
#
# Stage 2: a list of chunks, and pure functions
# ---------------------------------------------
#
# There is no Dask yet, but the loop takes the shape that Dask needs. The data become a list of chunks. The work on
# one chunk becomes a function of its own, worth some milliseconds at least. And that function is *pure*: it
# writes to copies, draws its random order from a seed that it is given, and returns all that has changed. Then it
# does not matter where it runs, nor whether it has to run once more because a machine was lost.


def visit(A, b, n, x, memory, average, step, seed):
    x, memory, average = x.copy(), memory.copy(), average.copy()
    order = np.random.default_rng(seed).permutation(len(b))
    visit_rows(A, b, order, n, x, memory, average, step)
    return x, memory, average


def new_order(k):
    """Of the chunks in pass k: always in the same order, SAGA would go round the optimum for long."""
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
# The visits of SAGA follow each other: each starts from the coefficients that the one before has left. So at any time
# one worker at most can be busy, however many there are. The best that a cluster can do with such a chain is 100 %,
# one bar at a time. What it gains is room: each worker holds some of the chunks.
#
# **What to learn.** Pure functions cost some copies, of a few coefficients and of one number a row, and little time:
# there are hardly any gaps. A visit stays in its chunk for long, so that this SAGA is not quite that of stage 1, and
# needs more passes in the end; the last section measures by how much, and what helps.
#
# Stage 3: ``dask.delayed``, the obvious way
# ------------------------------------------
#
# A ``Client`` with no address starts a small cluster on this machine: a *scheduler* that knows what has to be
# done, and *workers* that do it, here two processes with one thread each. The same code runs with the address of
# a cluster of many machines. Everything that is computed below goes to the client that was made last, without being told
# so. Its *dashboard* is a web page that draws the task stream while it grows (``":0"`` lets it take any free port):
# open the link beside this page.

client = Client(
    n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="ERROR"
)
print(f"its dashboard: {client.dashboard_link}")

# %%
# ``dask.delayed`` turns a function into one that does nothing yet: called, it returns a ``Delayed``, a note that this
# function is to be called with these arguments. Such a call is a *task*. ``dask.compute(note, ...)``, or
# ``note.compute()`` for a single one, sends notes to the scheduler, waits, and returns the values. The function itself
# and its arguments travel along, so workers need not have your code.
#
# A ``Delayed`` keeps no value: computed twice, the work is done twice. For the data that would be a waste, so they are
# given to ``dask.persist``. It starts to compute them too, but leaves the values on the workers and returns at once,
# with new ``Delayed`` that *refer* to them. ``nout=2`` tells Dask that the function returns two things, so that ``A, b``
# can be written for them before they exist.

# Each worker is a process of its own and has to compile the loop for itself.
# client.run calls a function once on every worker.
client.run(compile_loop)

chunks = list(
    dask.persist(*(dask.delayed(make_chunk, nout=2)(k) for k in range(CHUNKS)))
)

# %%
# Then it seems enough to delay ``visit`` and to compute it. What runs inside ``with get_task_stream(...)`` is recorded.


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
    """The task stream that Dask recorded, as bars: what was computed where, and when."""
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
# It works: the norms are those of stage 2, digit by digit. But there is white after each bar. (The picture shows the
# last two seconds; ``getitem`` is the small task that takes ``A`` or ``b`` out of what ``make_chunk`` returned.)
# In it the workers wait for the client, the process in which you type. Look at the two lines marked
# *here*. The first fetches every chunk, just to find the length of its longest row. The second waits for each
# visit, takes its results to the client, and sends them out again with the next one.
#
# **What to learn.** White between bars is work, or travel, that happens at the client. Look for ``compute`` in a
# loop, and for values that go out as arguments after they have just come back.
#
# Stage 4: delayed everywhere
# ---------------------------
#
# Whatever a task returns may be an argument of the next one *without* being computed: a ``Delayed`` can be handed
# on, and so can a list of them. Dask calls the function once all of them have their values, and sends these from
# worker to worker where needed. So let the coefficients, the memories and the step be delayed from the first to the
# last, and let nothing come back but one number a pass. Since a ``Delayed`` keeps no value, the norm of the second pass
# would compute the first pass again, that of the third both: ``persist`` prevents this. It starts all visits of a
# pass, their values stay on the workers, and the next pass is built on what refers to them.


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
# The bars move together. Visits of one pass follow each other without the client. Dask runs a task where the larger
# part of its arguments is, so the coefficients travel and the rows stay. The gap that is left once a pass is the
# number that we print.
#
# There are more tasks than visits. ``nout=3`` takes the returned tuple apart with one small task for each part:

names = [name for name, *_ in bars]
{name: names.count(name) for name in sorted(set(names))}

# %%
# Each of them waits in the chain. So let the tuple go on whole: the next visit takes what it needs from the result of
# the visit before, and from the one that its own chunk returned in the last pass.


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
# **What to learn.** Keep values delayed; persist what is needed again; bring back only what a person or a decision
# needs, and rarely. Each task costs a millisecond of scheduling and, in a chain, some more of travel, so tasks should be
# worth ten times that, and a result that the next task takes anyway should not be taken apart.
#
# Stage 5: profile
# ----------------
#
# All is well? Start a new cluster, without ``client.run(compile_loop)``, and the same code takes seconds longer.

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
# The first visit of each worker is longer than many later ones together. Busy they are, but with what? The
# workers look a hundred times a second at what they execute. ``client.profile()`` returns these samples as a tree of
# calls: how many fell into a function (``count``), which one it is (``description``), and the functions that it called
# (``children``). ``client.profile(filename="profile.html")`` draws it as a page to look at. How many of the samples fell
# into numba, or into what it called?


def samples(tree, package):
    """How many samples have a function of this package somewhere on the stack."""
    if package in Path(tree["description"]["filename"]).parts:
        return tree["count"]
    return sum(samples(child, package) for child in tree["children"].values())


tree = client.profile()
compiling = samples(tree, "numba") / tree["count"]
print(f"{tree['count']} samples, {compiling:.0%} of them in numba's compiler")

# %%
# In their first visits the workers compile the loop, each for itself. That was the last finding of 2018 as well. There
# are two remedies. One was shown above: let all workers compile at the same time before the chain begins. The
# other is ``njit(cache=True)`` and a module of your own that all workers can import, instead of a notebook: the first
# process that compiles leaves its machine code on disk, and all later ones on that machine load it.
#
# **What to learn.** A task stream tells *whether* workers are busy; the profile tells *with what*.
#
# The same, ready to use
# ----------------------
#
# ``dask_saga`` (``pip install .`` in a clone of it) is these five stages and what came after. Its kernels are cached on
# disk, and one task a visit hands its result on whole. ``saga`` finds the client by itself, and takes the same
# list of chunks, each a pair that is delayed:

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
# There is no chain. A sample of the rows leads (``saga-refine``), one small task at a time, and all chunks at once tell
# the exact gradient where it led (``saga-memory``). Visits in a chain, as above, come only where the sample is of no more
# use. How far did each get?


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
        f"{name}: {gap:.0e} of the way from zero to the optimum are left after {PASSES} passes"
    )

# %%
# The step size and the averages that make the difference are explained in :doc:`/algorithm/index`. ``SAGAClassifier`` does
# the same for a dask array or dataframe: continue with :doc:`/guide/index`, or look at the :doc:`/gallery/index`.

client.close()
