"""
From a NumPy loop to Dask, in five stages
=========================================

You know NumPy and scikit-learn, and have a loop that is too large for one array or one machine. This page
takes such a loop, SAGA for logistic regression, to a Dask cluster with ``dask.delayed``. Each stage runs, and is
measured by the share of the time in which some worker computes. In 2018 a researcher and a Dask developer
`went the same way <https://blog.dask.org/2018/08/07/incremental-saga>`_ in an afternoon; ``dask_saga`` is
where it led.

Nothing below needs ``dask_saga`` until the very end, only ``pip install "dask[distributed]" numba matplotlib``, and no
knowledge of Dask is assumed. Run it as a notebook (there is a download at the bottom), or paste it into one. In a script, put everything that follows the
functions under ``if __name__ == "__main__":``, since every worker process imports the script.
"""

import time

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
# Stage 1: a function of arrays
# -----------------------------
#
# SAGA visits one row after the other. It keeps, for each row, the derivative that it saw there last (the
# *memory*), and the average of all rows' gradients. What changes at a row is the difference to its memory, so
# the noise of single rows dies out and the step size may stay constant. As a loop over rows it is far too slow in
# Python; numba's ``njit`` compiles it to machine code.


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


def saga_1(A, b, step, passes):
    rng = np.random.default_rng(0)
    n, p = A.shape
    x, memory, average = np.zeros(p), np.zeros(n), np.zeros(p)
    for _ in range(passes):
        visit_rows(A, b, rng.permutation(n), n, x, memory, average, step)
        print(f"gradient norm: {np.linalg.norm(average):.1e}")
    return x


def step_size(A):
    return 1 / (3 * 0.25 * (A**2).sum(axis=1).max())  # 1 / (3 L), as in the paper


A, b = make_chunk(0)
x = saga_1(A, b, step_size(A), PASSES)

# %%
# **What to learn.** ``visit_rows`` writes into its arguments, which is fast, and fine as long as one process
# holds everything. It is the first thing that has to go.
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
            start = time.time()
            x, memories[i], average = visit(
                A, b, n, x, memories[i], average, step, [k, i]
            )
            bars.append(("visit", "this process", start, time.time()))
        print(f"gradient norm: {np.linalg.norm(average):.1e}")
    return x, bars


# %%
# How well is a run used? Note for each piece of work where it ran, when it started and when it stopped, and draw
# one bar each. Dask calls that a *task stream*. Its share of time with a bar in it is the *busy fraction*. The
# visits of SAGA follow each other, each needs the one before. So at any time one worker at most can be busy,
# however many there are: the best busy fraction of such a chain is 100 % with one bar at a time, and the
# rest is waiting.


def busy_fraction(bars):
    busy, reached = 0.0, -np.inf
    for _, _, start, stop in sorted(bars, key=lambda bar: bar[2]):
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return busy / (reached - min(bar[2] for bar in bars))


def draw(bars, title, seconds=None):
    """One row a worker, one colour a kind of task; only the last seconds, if given."""
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


chunks = [make_chunk(k) for k in range(CHUNKS)]
x, bars = saga_2(chunks, PASSES)
draw(bars, "Stage 2, pure functions, no Dask")

# %%
# **What to learn.** Pure functions cost some copies, of a few kilobytes of coefficients and of one number a row,
# and little time: there are hardly any gaps. This is the mark that the next stages are measured against.
#
# Stage 3: ``dask.delayed``, the obvious way
# ------------------------------------------
#
# A ``Client`` with no address starts a small cluster on this machine: a *scheduler* that knows what has to be
# done, and *workers* that do it, here two processes with one thread each. The same code runs with the address of
# a cluster of many machines.

client = Client(
    n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="ERROR"
)
print(f"its dashboard: {client.dashboard_link}")

# %%
# ``dask.delayed`` turns a function into one that does nothing yet. It returns a ``Delayed``: a note that this
# function is to be called with these arguments. ``dask.compute`` sends such notes to the scheduler, waits, and
# returns the values. So it seems enough to delay ``visit`` and to compute it. ``dask.persist`` is for the data:
# it starts to compute them too, but leaves the values on the workers and returns at once, with new ``Delayed`` that
# *refer* to them. ``nout=2`` tells Dask that the function returns two things, so that ``A, b`` can be written for
# them before they exist. What runs inside ``with get_task_stream(...)`` is recorded.

# Each worker compiles the loop once, at its first visit. client.run calls a function on every worker, so do
# that now: stage 5 comes back to it.
tiny = np.zeros((2, COLUMNS)), np.ones(2)


def compile_loop():
    visit(*tiny, 2, np.zeros(COLUMNS), np.zeros(2), np.zeros(COLUMNS), 0.1, 0)


client.run(compile_loop)
chunks = list(
    dask.persist(*(dask.delayed(make_chunk, nout=2)(k) for k in range(CHUNKS)))
)


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
        print(f"gradient norm: {np.linalg.norm(average):.1e}")
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
# It works, with the same result. But there is white after each bar. The picture shows the last two seconds:
# between two bars the workers wait for the client, the process in which you type. Look at the two lines marked
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
# on. So let the coefficients, the memories and the step be delayed from the first to the last, and let nothing come
# back but one number a pass. ``persist`` starts all visits of a pass; the client only holds references, from which the
# next pass is built.


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
        print(f"gradient norm: {size.compute():.1e}")
    return x.compute()


with get_task_stream(client) as stream:
    x = saga_4(chunks, PASSES)
bars = to_bars(stream)
draw(bars, "Stage 4, delayed everywhere", seconds=2)

# %%
# The bars move together. Visits of one pass follow each other without the client, wherever their chunk lies: the
# coefficients travel, the rows stay. The gap that is left once a pass is the number that we print.
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
        print(f"gradient norm: {size.compute():.1e}")
    return previous.compute()[0]


with get_task_stream(client) as stream:
    x = saga_4_whole(chunks, PASSES)
draw(to_bars(stream), "Stage 4, results handed on whole", seconds=2)

# %%
# **What to learn.** Keep values delayed; bring back only what a person or a decision needs, and rarely. Each task
# costs milliseconds of scheduling, so tasks should be worth ten times that, and a result that the next task
# takes anyway should not be taken apart.
#
# Stage 5: profile
# ----------------
#
# All is well? Start a new cluster, and the same code takes seconds longer.

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
# workers sample what they execute a hundred times a second. ``client.profile()`` returns it as a tree of calls;
# ``client.profile(filename="profile.html")`` draws that.


def samples(tree, file, inside=False):
    """How many samples have a function of this package somewhere on the stack."""
    inside = inside or f"/{file}/" in tree["description"]["filename"]
    return (
        tree["count"]
        if inside
        else sum(samples(child, file) for child in tree["children"].values())
    )


tree = client.profile()
compiling = samples(tree, "numba") / tree["count"]
print(f"{tree['count']} samples, {compiling:.0%} of them in numba's compiler")

# %%
# In their first visits the workers compile the loop, each for itself. That was the last finding of 2018 as well. There
# are two remedies. One was shown above: let all workers compile at the same time before the chain begins. The
# other is ``njit(cache=True)`` and a module of your own, instead of a notebook: the first process that compiles
# leaves its machine code on disk, and all later ones load it.
#
# **What to learn.** A task stream tells *whether* workers are busy; the profile tells *with what*.
#
# The same, ready to use
# ----------------------
#
# ``dask_saga`` is these five stages and what came after. Its kernels are cached on disk, and one task a visit hands
# its result on whole. ``saga`` takes the same list of chunks:

from dask_saga import saga

pairs = [dask.delayed(make_chunk)(k) for k in range(CHUNKS)]
with get_task_stream(client) as stream:
    result = saga(pairs, max_iter=PASSES, random_state=0)
draw(
    [bar for bar in to_bars(stream) if bar[0] == "saga-chunk"],
    "dask_saga.saga, its visits",
)

# %%
# It also goes further in as many passes. The norms printed above are those of the *remembered* gradients. With few,
# long chunks these may agree while ``x`` is still some way off, as each visit ends near an optimum of its own chunk.
# The mean loss of all rows tells:


def total_loss(x, A, b):
    return np.logaddexp(0, -b * (A @ x)).sum()


def mean_loss(x):
    return sum(
        dask.compute(*(dask.delayed(total_loss)(x, A, b) for A, b in chunks))
    ) / (CHUNKS * ROWS)


best = mean_loss(saga(pairs, max_iter=20, random_state=1).x)
for name, found in (("stage 5", x), ("dask_saga.saga", result.x)):
    gap = (mean_loss(found) - best) / (np.log(2) - best)
    print(
        f"{name}: {gap:.0e} of the way from zero to the optimum are left after {PASSES} passes"
    )

# %%
# The step size and the averages that make the difference are explained in :doc:`/algorithm`. ``SAGAClassifier`` does
# the same for a dask array or dataframe: continue with :doc:`/guide/index`, or look at the :doc:`/gallery/index`.

client.close()
