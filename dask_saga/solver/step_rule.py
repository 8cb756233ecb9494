"""The constants of the step-size rule, in one value. docs/algorithm/step_size.md states the rule and names the fields.

The modules that apply the rule read ``STEP_RULE``.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STEP_RULE", "StepRule"]


class StepRule(NamedTuple):
    """Constants of the rule for ``step_size="auto"``, in the order of docs/algorithm/step_size.md.

    The rule as a whole is measured in docs/algorithm/step_size.md, "Measured on sorted and shuffled chunks", and
    compared with others in docs/history/step_rules.md. A field that is measured alone names the page.

    Parameters
    ----------
    default_scale : float
        Step for many rows, in units of 1 / L: the default of ``step_size_scale``. The predictions of passes assume
        it, and the proximal step from an averaged iterate is at most this long. Larger: more noise is left after a
        pass. Smaller: x drifts more slowly. About the 1/(3L) of the SAGA paper.
    max_step_per_row : float
        Upper bound of the step, in units of 1 / L per row. Larger: a handful of rows may overshoot. Smaller: they take
        less than plain gradient steps.
    row_bound : float
        Largest Lipschitz constant of a single visit of a row, in units of L. A row with a larger constant L_i is
        visited ceil(L_i / (row_bound * L)) times in a pass. Larger: long rows make the visits noisier. Smaller: a pass
        has more visits, up to n / row_bound additional ones. Measured in docs/algorithm/step_size.md, "Sampling rows by
        their bounds".
    shorter_factors : tuple of float
        Candidates of ``step_factor`` for many rows. Smaller ones would leave less noise and drift more slowly.
    accuracy : float
        Relative suboptimality to which passes are predicted. Smaller: noise counts more, and shorter steps are chosen.
        The choice of the rotation uses the same prediction.
    first_noise, noise : float
        Suboptimality that noise leaves after a pass with step s / L: ``first_noise * s`` of the initial one after the
        first pass, ``noise * s`` of the previous one after each further pass. Larger: shorter steps are chosen.
        Measured by benchmarks/step.py.
    low_curvature : float
        Curvature in units of its bound, to predict drift when a shorter step is chosen. Larger: shorter steps are
        chosen. It is far below the mean curvature, because a step that is too short costs more than one that is too
        long.
    condition_ratio : float
        Bound of the curvature over its value at the optimum, for losses other than squared error. Larger: longer steps
        for few rows.
    max_condition : float
        Largest assumed condition, L over the smallest curvature, for these losses. Larger: longer steps for few rows.
    trust_growth : float
        In a stream, the step factor of a chunk at its first visit is at most its share of all rows, divided by
        `default_scale` times its number of rows where that is below 1. Each further visit multiplies this limit by the
        field. Larger: new chunks move x sooner, also the wrong way. Smaller: they are
        learned more slowly. Other rules are measured in docs/history/first_visits.md.
    raise_below_ratio, target_ratio, cut_above_ratio : float
        Bounds of r, the mean over the visits of a window of log(d_1^2 / d_2^2), where d_1 and d_2 are the distances
        that x moves in the first and the second half of a visit. The ratio is exp(step x rows x curvature) in the
        direction of the move, so it is large if visits settle. Up to `raise_below_ratio` the step may be raised. Above
        `cut_above_ratio` it is reduced, such that r becomes about `target_ratio`. Larger: chunks that differ may stall.
        Smaller: the step is shorter than it need be.
    chunk_curvature : float
        Assumed largest curvature of a chunk, in units of L. It caps r. Larger: columns stored in one or two rows cut
        the step, as their ratio is random. Smaller: visits that settle go unnoticed.
    max_cut : float
        Largest divisor of one reduction because of r. Larger: one random r may cost several passes. Smaller: a step
        that is far too long takes more windows to shorten.
    stuck_ratio, growing_ratio : float
        Ratios of the squared moves of two consecutive windows. The step is divided by `stuck_cut` if the ratio is above
        `stuck_ratio` while x circles or turns back, or above `growing_ratio` in any case. Larger: the step stays too
        long for more windows. Smaller: a random change of the moves shortens it.
    kept_ratio : float
        While x circles, the step is kept if the ratio of the squared moves is above this. Larger: the step is raised
        although x still circles. Smaller: the step is raised later.
    stuck_cut : float
        Divisor of the step where x is stuck or moves grow, and after a pass that was undone. Larger: the way back to
        long steps takes more windows. Smaller: it takes more windows, or undone passes, to reach a safe step.
    raise_factor : float
        Factor by which a multiplier below 1 is raised. Larger: the step overshoots its right length. Smaller: it takes
        more windows to recover from a reduction.
    same_direction, opposite_direction : float
        Cosines between the moves of two consecutive windows, above and below which they have the same direction or
        opposite ones. Then a multiplier of at least 1 is raised or reduced by `long_step_factor`. Larger: fewer raises,
        more reductions.
    long_step_factor : float
        Factor of one raise or reduction of a multiplier of at least 1. Larger: it adapts faster, but more passes are
        undone.
    straight : float
        Cosine between the moves of two windows above which x drifts and the step is too short, even if x turns at every
        visit. Larger: chunks that each know some columns keep short steps. Smaller: x that circles counts as drifting.
        Measured in docs/algorithm/step_size.md, "Step control".
    circling_cosine : float
        x circles rather than drifts if the cosine between mean - start and last x - mean of the window is below this.
        Larger: the mean is taken while x still drifts, and lags behind. Smaller: a circle goes unnoticed. Measured in
        docs/algorithm/averaging.md.
    max_multiplier, min_multiplier : float
        Bounds of the step multiplier. Larger `max_multiplier`: faster drift along flat directions, and more passes to
        undo. `min_multiplier` only keeps the multiplier above zero.
    axis_slack : float
        Factor of the limits per axis, since the curvature bound overestimates the mean curvature. Larger: a chunk that
        knows little of an axis may overshoot along it. Smaller: x drifts more slowly along such axes. The limits are
        measured in docs/algorithm/step_size.md, "Limits per axis".
    attempts : int
        Number of attempts of a visit, each with a shorter step than the one before, until it does not diverge. Smaller:
        fits with a far too long ``step_size_scale`` end with ``diverged_``. See docs/algorithm/saga_visit.md, "Steps
        that diverge".
    retry_factor : float
        Factor of the step after each attempt that diverged. Larger: more attempts are needed. Smaller: the step that
        remains may be far too short, and it takes several windows to raise it.
    undo_ratio, undo_share : float
        A pass is undone if its gradient norm exceeds `undo_ratio` times the smallest one so far, the previous one, and
        `undo_share` times the norm at zero. Larger: a pass that diverges is kept. Smaller: good passes are undone,
        where an earlier norm was estimated too low. Measured in docs/algorithm/step_size.md, "Undoing a pass", and in
        docs/history/never_raise_the_step.md.
    """

    default_scale: float = 0.3
    max_step_per_row: float = 0.5
    row_bound: float = 2.0
    shorter_factors: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    accuracy: float = 1e-6
    first_noise: float = 0.7
    noise: float = 1.0 / 3.0
    low_curvature: float = 0.03
    condition_ratio: float = 100.0
    max_condition: float = 4500.0
    trust_growth: float = 3.0
    raise_below_ratio: float = 0.3
    target_ratio: float = 0.5
    cut_above_ratio: float = 1.0
    chunk_curvature: float = 2.0
    max_cut: float = 10.0
    stuck_ratio: float = 0.5
    growing_ratio: float = 2.0
    kept_ratio: float = 0.3
    stuck_cut: float = 3.0
    raise_factor: float = 2.0
    same_direction: float = 0.5
    opposite_direction: float = 0.0
    long_step_factor: float = 1.5
    straight: float = 0.9
    circling_cosine: float = 0.6
    max_multiplier: float = 30.0
    min_multiplier: float = 1e-200
    axis_slack: float = 5.0
    attempts: int = 5
    retry_factor: float = 0.1
    undo_ratio: float = 10.0
    undo_share: float = 0.1


STEP_RULE = StepRule()
